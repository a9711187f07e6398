//! The manual's examples, letter for letter, and descriptions that are none.

use super::*;

/// A machine as the manual has it, with these disks.
fn domain(disks: &str) -> String {
    format!(
        "<domain type='qemu'><name>QEMUGuest1</name>
         <os> <type arch='i686' machine='pc'>hvm</type> <boot dev='hd'/> </os>
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
         <controller type='usb' index='0'/><memballoon model='virtio'/></devices></domain>"
    )
}

fn source(inner: &str) -> String {
    format!(
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/>{inner}<target dev='vda' bus='virtio'/></disk>"
    )
}

fn one(xml: &str) -> String {
    let mut all = qemu_args(xml).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0).join(" ")
}

#[test]
fn the_three_examples_of_the_manual_become_what_it_shows() {
    let tcp = source(
        "<source protocol='openvstorage' name='vol1' snapshot-timeout='120'><host name='ovs.include.gr' port='12329'/></source>",
    );
    assert_eq!(
        one(&domain(&tcp)),
        "-drive file=openvstorage+tcp:ovs.include.gr:12329/vol1:snapshot-timeout=120,if=none,id=drive-virtio-disk0,format=raw \
         -device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x2,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1"
    );
    let rdma = tcp.replace("port='12329'", "port='12329' transport='rdma'");
    assert_eq!(
        one(&domain(&rdma)),
        "-drive file=openvstorage+rdma:ovs.include.gr:12329/vol1:snapshot-timeout=120,if=none,id=drive-virtio-disk0,format=raw \
         -device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x2,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1"
    );
    let other =
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/HostVG/QEMUGuest1'/>
        <target dev='hda' bus='ide'/><address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>";
    let shm = source("<source protocol='openvstorage' name='image' snapshot-timeout='98765'/>");
    assert_eq!(
        one(&domain(&format!("{other}{shm}"))),
        "-drive file=openvstorage:image:snapshot-timeout=98765,if=none,id=drive-virtio-disk0,format=raw \
         -device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x2,drive=drive-virtio-disk0,id=virtio-disk0"
    );
}

#[test]
fn a_disk_alone_is_enough_and_what_it_says_of_itself_counts() {
    let disk = "<disk type='network'><driver type='raw' cache='none' discard='unmap'/>
        <source protocol='openvstorage' name='a,b' enable-ha='off'><host name='h'/></source>
        <target dev='vdab' bus='virtio'/><boot order='3'/><address type='pci' slot='0x1f'/><readonly/></disk>";
    assert_eq!(
        one(disk),
        "-drive file=openvstorage+tcp:h/a,,b:enable-ha=off,if=none,id=drive-virtio-disk27,readonly=on,format=raw,cache=none,discard=unmap \
         -device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x1f,drive=drive-virtio-disk27,id=virtio-disk27,bootindex=3"
    );
    let second = source("<source protocol='openvstorage' name='b'/>").replace("vda", "vdb");
    let both = domain(&format!("{}{second}", source("<source protocol='openvstorage' name='a'/>")));
    let slots: Vec<bool> = qemu_args(&both)
        .unwrap()
        .iter()
        .zip(["addr=0x2,", "addr=0x3,"])
        .map(|(args, slot)| args[3].contains(slot))
        .collect();
    assert_eq!(slots, [true, true]);
}

#[test]
fn what_is_wrong_in_a_description_is_named() {
    for (inner, says) in [
        ("<source protocol='openvstorage'/>", "volume name must be specified"),
        ("<source protocol='openvstorage' name=''/>", "volume name must be specified"),
        ("<source protocol='openvstorage' name='a:b'/>", "':'"),
        ("<source protocol='openvstorage' name='a b'/>", "' '"),
        (
            "<source protocol='openvstorage' name='a'><host port='1'/></source>",
            "server and volume name must be specified",
        ),
        ("<source protocol='openvstorage' name='a'><host name='h' port='0'/></source>", "1 to 65535"),
        ("<source protocol='openvstorage' name='a'><host name='h' port='+1'/></source>", "1 to 65535"),
        ("<source protocol='openvstorage' name='a'><host name='h/x'/></source>", "'/'"),
        ("<source protocol='openvstorage' name='a'><host name='h' transport='shm'/></source>", "leave <host> out"),
        ("<source protocol='openvstorage' name='a'><host name='h' transport='udp'/></source>", "tcp and rdma"),
        ("<source protocol='openvstorage' name='a'><host name='h'/><host name='i'/></source>", "several hosts"),
        ("<source protocol='openvstorage' name='a' snapshot-timeout='2m'/>", "number of seconds"),
        ("<source protocol='openvstorage' name='a' enable-ha='yes'/>", "neither on nor off"),
        ("<source protocol='nbd' name='a'/>", "protocol='openvstorage'"),
    ] {
        let error = qemu_args(&source(inner)).unwrap_err();
        assert!(error.contains(says), "{inner}: {error}");
    }
    let good = source("<source protocol='openvstorage' name='a'/>");
    for (xml, says) in [
        ("not xml".to_owned(), "no XML"),
        (good.replace("vda", "sda"), "like vda"),
        (good.replace("bus='virtio'", "bus='ide'"), "not virtio"),
        (good.replace("<target dev='vda' bus='virtio'/>", ""), "<target"),
        (good.replace("</disk>", "<address type='pci' slot='0x20'/></disk>"), "0x01 to 0x1f"),
        (good.replace("</disk>", "<boot order='x'/></disk>"), "boot order"),
        (good.replace("type='raw'", "type='raw,file=x'"), "driver type"),
        (format!("<!DOCTYPE a [<!ENTITY b 'c'>]>{good}"), "no XML"),
    ] {
        let error = qemu_args(&xml).unwrap_err();
        assert!(error.contains(says), "{xml}: {error}");
    }
}
