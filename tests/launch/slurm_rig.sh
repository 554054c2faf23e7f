#!/bin/sh
# A real Slurm on the hosts of hosts_rig.sh: slurmctld and munged on the first, slurmd on the first two, four fake GPUs each.
#   slurm_rig.sh up DIR      after `hosts_rig.sh up DIR`; waits until both nodes are idle; leaves DIR/slurm/slurm.conf
#   slurm_rig.sh down DIR
# Needs root, Debian's slurm-wlm and munge. The nodes are called rig1 and rig2, as the hosts are.
set -eu
action=$1
dir=$2
s=$dir/slurm
exec=
on() { # on HOST COMMAND... (in the background: in a subshell that becomes the command, so that $! is its pid)
  n=$1
  shift
  $exec nsenter -t "$(cat "$dir/pid.$n")" -n -u -i -m "$@"
}
case $action in
up)
  mkdir -p "$s/munge" "$s/state" "$s/gpu"
  chmod 0755 "$dir" "$s"
  chmod 0700 "$s/munge"
  dd if=/dev/urandom of="$s/munge/key" bs=1024 count=1 2>/dev/null
  chmod 0400 "$s/munge/key"
  for i in 0 1 2 3; do [ -e "$s/gpu/$i" ] || mknod "$s/gpu/$i" c 1 3; done
  # KillWait and the scheduling interval are short, so that the tests are; the rest is what the packages default to.
  cat >"$s/slurm.conf" <<EOF
ClusterName=rig
SlurmctldHost=rig1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$s/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
KillWait=5
OverTimeLimit=0
GresTypes=gpu
StateSaveLocation=$s/state
SlurmdSpoolDir=$s/spool-%n
SlurmctldPidFile=$s/slurmctld.pid
SlurmdPidFile=$s/slurmd-%n.pid
SlurmctldLogFile=$s/slurmctld.log
SlurmdLogFile=$s/slurmd-%n.log
TmpFS=$s/tmp-%n
NodeName=rig1 NodeAddr=10.77.0.1 CPUs=8 RealMemory=1000 Gres=gpu:a100:4
NodeName=rig2 NodeAddr=10.77.0.2 CPUs=8 RealMemory=1000 Gres=gpu:a100:4
PartitionName=all Nodes=rig1,rig2 Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
EOF
  printf 'NodeName=rig[1-2] Name=gpu Type=a100 File=%s/gpu/[0-3]\n' "$s" >"$s/gres.conf"
  printf 'CgroupPlugin=cgroup/v1\n' >"$s/cgroup.conf"
  mkdir -p "$s/tmp-rig1" "$s/tmp-rig2" "$s/spool-rig1" "$s/spool-rig2"
  # munged checks that nobody else could have put its files there; the directories are the test's own.
  munged --force --foreground --key-file "$s/munge/key" --socket "$s/munge.socket" --pid-file "$s/munged.pid" \
    --log-file "$s/munged.log" --seed-file "$s/munged.seed" </dev/null >"$s/munged.out" 2>&1 &
  echo $! >"$s/pid.munged"
  i=0
  while [ ! -S "$s/munge.socket" ]; do
    i=$((i + 1))
    [ $i -lt 100 ] || { cat "$s/munged.out" "$s/munged.log"; exit 1; }
    sleep 0.1
  done
  export SLURM_CONF="$s/slurm.conf"
  exec=exec
  on 1 slurmctld -D </dev/null >"$s/slurmctld.out" 2>&1 &
  echo $! >"$s/pid.slurmctld"
  for n in 1 2; do
    on $n slurmd -D -N rig$n </dev/null >"$s/slurmd$n.out" 2>&1 &
    echo $! >"$s/pid.slurmd$n"
  done
  exec=
  i=0
  until [ "$(on 1 sinfo -h -N -o %T 2>/dev/null | grep -c idle)" = 2 ]; do
    i=$((i + 1))
    [ $i -lt 100 ] || { on 1 sinfo -N; tail -n 5 "$s"/*.out "$s"/*.log; exit 1; }
    sleep 0.2
  done
  ;;
down)
  # The controller first: it would take the loss of the others for failures.
  for p in slurmctld slurmd1 slurmd2 munged; do
    [ -f "$s/pid.$p" ] || continue
    pid=$(cat "$s/pid.$p")
    kill "$pid" 2>/dev/null || continue
    i=0
    while kill -0 "$pid" 2>/dev/null && [ $i -lt 50 ]; do
      i=$((i + 1))
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  # What jobs left running: everything that was started with this Slurm's configuration.
  for p in /proc/[0-9]*; do
    [ "${p#/proc/}" != $$ ] && tr '\0' '\n' <"$p/environ" 2>/dev/null | grep -qx "SLURM_CONF=$s/slurm.conf" && kill -KILL "${p#/proc/}" 2>/dev/null || true
  done
  ;;
esac
