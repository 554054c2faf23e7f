# Sourced by ./quickstart, ./run-tests and .ci/run: installs what is missing (Debian 12) and sets the environment.
# The one list of packages that a build, a run and the tests need.
R1RUN_PACKAGES=(g++ cmake ninja-build ccache pkg-config git ca-certificates
  libopenmpi-dev openmpi-bin libhwloc-dev libpugixml-dev libboost-program-options-dev libfmt-dev libspdlog-dev nlohmann-json3-dev
  libutf8proc-dev libopenblas-pthread-dev zlib1g-dev libzstd-dev libucx-dev)
R1RUN_TEST_PACKAGES=(libgtest-dev libgmock-dev libbenchmark-dev clang-14 iproute2 procps strace ibsim-utils infiniband-diags bzip2 slurm-wlm munge python3-yaml)

# r1run_install PACKAGE...: installs what is not there yet, as root or through sudo; otherwise says what is missing and stops.
r1run_install() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo)
    else
      echo "r1run: these packages are missing, and this user is neither root nor allowed to use sudo:" >&2
      echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
      exit 69
    fi
  fi
  echo "r1run: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Open MPI refuses more ranks than cores, and root, unless told.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# One compiler cache for all clones: paths relative to the tree, the folder not part of the key.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=time_macros
