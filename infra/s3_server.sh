#!/usr/bin/env bash
# A real S3 server for tests: Ceph's RadosGW over one in-memory disk, run without privileges from Debian's own packages.
#
#   infra/s3_server.sh get      download the packages (70 MB) and unpack them into a folder (260 MB); installs nothing
#   infra/s3_server.sh start    start it, wait until it answers, print its endpoint (about 15 seconds)
#   infra/s3_server.sh stop     stop it and forget its objects
#
# Keys: access key "test", secret key "testsecret". Settings, from the environment:
#   PAGEREEL_RADOSGW        where the software lies            (~/.cache/pagereel/radosgw)
#   PAGEREEL_RADOSGW_RUN    where a running server keeps its state; sockets need a short path (run-PORT beside the software)
#   PAGEREEL_RADOSGW_PORT   port of the endpoint; the next two are used inside (17480)
set -euo pipefail

software=${PAGEREEL_RADOSGW:-$HOME/.cache/pagereel/radosgw}
port=${PAGEREEL_RADOSGW_PORT:-17480}
run=${PAGEREEL_RADOSGW_RUN:-$software/run-$port}
endpoint=http://127.0.0.1:$port
tree=$software/tree
conf=$run/ceph.conf

get() {
  [ -x "$tree/usr/bin/radosgw" ] && return
  mkdir -p "$software"/apt/{lists,cache}/partial
  local apt=(apt-get -q -o Dir::State::Lists="$software/apt/lists" -o Dir::Cache="$software/apt/cache"
    -o Dir::Cache::Archives="$software/apt/cache" -o Debug::NoLocking=1)
  "${apt[@]}" update
  "${apt[@]}" install --yes --no-install-recommends --download-only radosgw ceph-mon ceph-osd ceph-common
  rm -rf "$tree.new"
  for package in "$software"/apt/cache/*.deb; do dpkg -x "$package" "$tree.new"; done
  mv "$tree.new" "$tree" # last, so that a broken download is never taken for a server
  rm -rf "$software/apt"
}

use_tree() {
  local libraries
  libraries=$(echo "$tree"/usr/lib/*-linux-gnu)
  export LD_LIBRARY_PATH=$libraries:$libraries/ceph:${tree}/lib/${libraries##*/}
  export PYTHONPATH=$tree/usr/lib/python3/dist-packages
  export PATH=$tree/usr/bin:/usr/bin:$PATH CEPH_CONF=$conf
  # No authentication between the parts, hence `crc`; one copy of everything; both monitor protocols, or clients hang.
  cat > "$conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1))/0,v1:127.0.0.1:$((port + 2))/0]
mon initial members = a
mon allow pool size one = true
mon max pg per osd = 500
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms bind ipv6 = false
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms client mode = crc
ms cluster mode = crc
ms service mode = crc
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class dir = $libraries/rados-classes
osd class load list = *
osd class default list = *
plugin dir = $libraries/ceph
erasure code dir = $libraries/ceph/erasure-code
run dir = $run
crash dir = $run
admin socket = $run/\$name.asok
pid file = $run/\$name.pid
log file = $run/\$name.log
mon cluster log file = $run/cluster.log
log to stderr = false
err to stderr = false
[mon.a]
mon data = $run/mon
[osd.0]
osd data = $run/osd
[client.rgw]
rgw data = $run/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
CONF
}

answers() { curl --silent --output /dev/null --max-time 2 "$endpoint"; }

bring_up() {
  ceph=(timeout 30 python3 "$tree/usr/bin/ceph")
  monmaptool --create --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]" "$run/monmap"
  ceph-mon -i a --mkfs --monmap "$run/monmap"
  ceph-mon -i a
  local disk
  disk=$(cat /proc/sys/kernel/random/uuid)
  "${ceph[@]}" osd new "$disk"
  ceph-osd -i 0 --mkfs --osd-uuid "$disk"
  "${ceph[@]}" osd crush add osd.0 1.0 host=here root=default
  ceph-osd -i 0
  radosgw-admin --name client.rgw user create --uid=test --display-name=test --access-key=test --secret-key=testsecret
  radosgw --name client.rgw
}

start() {
  [ -x "$tree/usr/bin/radosgw" ] || { echo "no server in $software: run '$0 get' first" >&2; exit 1; }
  if answers; then echo "something already answers at $endpoint" >&2; exit 1; fi
  rm -rf "$run"
  mkdir -p "$run"/{mon,osd,rgw}
  use_tree
  bring_up > "$run/start.log" 2>&1 < /dev/null || { echo "did not start: see $run/start.log" >&2; stop; exit 1; }
  for _ in $(seq 150); do
    if answers; then echo "$endpoint"; return; fi
    sleep 0.2
  done
  echo "does not answer: see $run" >&2
  exit 1
}

stop() {
  local file pid
  for file in "$run"/{client.rgw,osd.0,mon.a}.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    case $(cat "/proc/$pid/comm" 2> /dev/null) in # the number may be somebody else's by now
      radosgw | ceph-*) kill -KILL "$pid" ;;      # nothing it holds outlives it anyway
    esac
    rm "$file"
  done
}

case ${1:-} in
  get | start | stop) "$1" ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
