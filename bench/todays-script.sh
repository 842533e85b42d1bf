#!/bin/sh
# What people write today who want one snapshot of a VM's local disks and of its Cinder volumes: one program after another. Not a part of Stillpoint: the
# bench runs it for comparison.
#
# usage: todays-script.sh VM NAME OVERLAY-FOLDER 'VOLUME …' 'TARGET-OF-A-VOLUME …'
# Prints the milliseconds from the freeze's end to the thaw's start.
set -eu
vm=$1 name=$2 folder=$3 volumes=$4 others=$5

disks=
for target in vda vdb; do disks="$disks --diskspec $target,snapshot=external,file=$folder/$target.$name.qcow2"; done
for target in $others; do disks="$disks --diskspec $target,snapshot=no"; done

# Whatever goes wrong, the guest is thawed.
trap 'virsh -q domfsthaw "$vm" >/dev/null' EXIT
trap 'exit 1' INT TERM HUP
virsh -q domfsfreeze "$vm" >/dev/null
frozen=$(date +%s%N)

virsh -q snapshot-create-as "$vm" "$name" --disk-only --atomic --no-metadata $disks >/dev/null
for volume in $volumes; do
  snapshot=$(cinder snapshot-create --name "$name" "$volume" | awk '$2 == "id" { print $4 }')
  while :; do
    status=$(cinder snapshot-show "$snapshot" | awk '$2 == "status" { print $4 }')
    case $status in
      available) break ;;
      creating) sleep 0.5 ;;
      *) echo "Snapshot $snapshot is '$status'" >&2; exit 1 ;;
    esac
  done
done

echo $((($(date +%s%N) - frozen) / 1000000))
