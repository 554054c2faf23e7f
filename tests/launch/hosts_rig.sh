#!/bin/sh
# Three "hosts" on one machine: network, host-name, IPC and mount namespaces joined by veth pairs on a bridge.
#   hosts_rig.sh up DIR      prints nothing; leaves DIR/pid.1 … 3, DIR/agent.sh (for plm_rsh_agent) and DIR/enter.sh
#   hosts_rig.sh cut DIR N   takes the link of host N down (on the bridge's side), as pulling its cable would
#   hosts_rig.sh down DIR
# Needs root. Host N is called rigN, 10.77.0.N.
set -eu
action=$1
dir=$2
tag=$(echo "$dir" | cksum | cut -c1-5)
bridge=r1b$tag
case $action in
up)
  ip link add "$bridge" type bridge
  ip link set "$bridge" up
  printf '127.0.0.1 localhost\n10.77.0.1 rig1\n10.77.0.2 rig2\n10.77.0.3 rig3\n' >"$dir/hosts"
  for n in 1 2 3; do
    unshare --net --uts --ipc --mount --propagation private sleep 1200 >/dev/null 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$dir/pid.$n"
    # unshare needs a moment before the namespaces are its own
    while [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
    ip link add "r1v$tag$n" type veth peer name eth0 netns "$pid"
    ip link set "r1v$tag$n" master "$bridge" up
    nsenter -t "$pid" -n ip addr add 10.77.0.$n/24 dev eth0
    nsenter -t "$pid" -n ip link set eth0 up
    nsenter -t "$pid" -n ip link set lo up
    nsenter -t "$pid" -u hostname "rig$n"
    nsenter -t "$pid" -m mount -t tmpfs tmpfs /dev/shm
    nsenter -t "$pid" -m mount --bind "$dir/hosts" /etc/hosts
  done
  cat >"$dir/agent.sh" <<EOF
#!/bin/sh
# as ssh: [options] [user@]host [-p PORT] command
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\${1#*@}
echo "\$1" >>$dir/ssh-words
shift
if [ "\$1" = -p ]; then
  echo "-p \$2" >>$dir/ssh-words
  shift 2
fi
exec nsenter -t \$(cat $dir/pid.\${host#rig}) -n -u -i -m /bin/sh -c "\$*"
EOF
  chmod +x "$dir/agent.sh"
  ;;
cut) ip link set "r1v$tag$3" down ;;
join)
  ip link set "r1v$tag$3" up
  until nsenter -t "$(cat "$dir/pid.$3")" -n ip link show eth0 | grep -q 'state UP'; do sleep 0.02; done
  # Addresses that nobody answered for are refused for a while; a cable that is back should be as good as new.
  for n in 1 2 3; do nsenter -t "$(cat "$dir/pid.$n")" -n ip neigh flush dev eth0; done
  ;;
down)
  for n in 1 2 3; do
    [ -f "$dir/pid.$n" ] && kill "$(cat "$dir/pid.$n")" 2>/dev/null || true
    ip link del "r1v$tag$n" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
  ;;
esac
