//! `ringway qemu-args < disk.xml`: the arguments of QEMU for disks that are described with `<source protocol='openvstorage' ...>`.
//!
//! No libvirt ever took that description; the manual of the edge says what it is to become. Without a host the volume is reached
//! through shared memory, with one by TCP where nothing else is said.

use std::io::{Read, stdin};

use clap::Args;
use roxmltree::{Document, Node};

use crate::failure::Failure;
use crate::output::Format;

/// No description of a machine is longer.
const INPUT_MAX: u64 = 1 << 20;
/// The first slot of a machine's PCI bus that is not its own.
const FIRST_SLOT: u32 = 2;
/// Slots of the bus.
const SLOTS: u32 = 32;

/// `ringway qemu-args`: reads standard input.
#[derive(Args, Debug)]
pub(crate) struct QemuArgsArgs {}

pub(crate) fn run(format: Format) -> Result<(), Failure> {
    let mut xml = String::new();
    let read = stdin().take(INPUT_MAX + 1).read_to_string(&mut xml);
    let read = read.map_err(|error| Failure::usage(format!("standard input cannot be read as text: {error}")))?;
    if read as u64 > INPUT_MAX {
        return Err(Failure::usage("standard input is longer than any description of a disk or a machine"));
    }
    let disks = qemu_args(&xml).map_err(Failure::usage)?;
    format.print(&disks, |disks| disks.iter().map(|args| args.join(" ")).collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// For each disk of ours its arguments.
fn qemu_args(xml: &str) -> Result<Vec<Vec<String>>, String> {
    let document = Document::parse(xml).map_err(|error| format!("standard input is no XML: {error}"))?;
    let disks: Vec<Node<'_, '_>> = document.descendants().filter(|node| node.has_tag_name("disk")).collect();
    let boots_from_disk =
        document.descendants().any(|node| node.has_tag_name("boot") && node.attribute("dev") == Some("hd"));
    let mut taken: Vec<u32> = disks.iter().filter_map(|disk| slot_of(*disk).transpose()).collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for (nth, disk) in disks.iter().enumerate() {
        let Some(source) = child(*disk, "source").filter(|source| source.attribute("protocol") == Some("openvstorage"))
        else {
            continue;
        };
        let slot = match slot_of(*disk)? {
            Some(slot) => slot,
            None => {
                let free = (FIRST_SLOT..SLOTS).find(|slot| !taken.contains(slot));
                let free = free.ok_or("the machine's PCI bus has no slot left for its disks")?;
                taken.push(free);
                free
            }
        };
        let order = child(*disk, "boot").and_then(|boot| boot.attribute("order"));
        let first = (boots_from_disk && nth == 0).then_some("1");
        all.push(disk_args(*disk, &file(source)?, slot, order.or(first))?);
    }
    if all.is_empty() {
        return Err("there is no <disk> with <source protocol='openvstorage' name='...'> in it".to_owned());
    }
    Ok(all)
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The slot of the PCI bus that the description names.
fn slot_of(disk: Node<'_, '_>) -> Result<Option<u32>, String> {
    let Some(address) = child(disk, "address").filter(|address| address.attribute("type") == Some("pci")) else {
        return Ok(None);
    };
    let slot = address.attribute("slot").unwrap_or("0");
    let number = slot.strip_prefix("0x").map_or_else(|| slot.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
    match number.filter(|number| (1..SLOTS).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("slot {slot:?} is none of a PCI bus; it has 0x01 to 0x1f")),
    }
}

/// Digits of at most ten places.
fn is_number(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is opened: `openvstorage[+TRANSPORT]:[HOST[:PORT]/]NAME[:snapshot-timeout=N][:enable-ha=on|off]`.
fn file(source: Node<'_, '_>) -> Result<String, String> {
    let name = source.attribute("name").filter(|name| !name.is_empty()).ok_or("volume name must be specified")?;
    plain("volume", name, ":")?;
    let mut hosts = source.children().filter(|node| node.has_tag_name("host"));
    let place = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err("several hosts are not possible here; name one".to_owned()),
        (None, None) => format!("openvstorage:{name}"),
        (Some(host), None) => place(host, name)?,
    };
    let mut options = String::new();
    if let Some(timeout) = source.attribute("snapshot-timeout") {
        if !is_number(timeout) {
            return Err(format!("snapshot-timeout {timeout:?} is not a number of seconds"));
        }
        options = format!(":snapshot-timeout={timeout}");
    }
    match source.attribute("enable-ha") {
        None => {}
        Some(ha @ ("on" | "off")) => options.push_str(&format!(":enable-ha={ha}")),
        Some(other) => return Err(format!("enable-ha {other:?} is neither on nor off")),
    }
    Ok(place + &options)
}

fn place(host: Node<'_, '_>, volume: &str) -> Result<String, String> {
    let transport = host.attribute("transport").unwrap_or("tcp");
    let name = host.attribute("name").filter(|name| !name.is_empty());
    match transport {
        "tcp" | "rdma" => {}
        "shm" => return Err("server/port must not be specified for transport shm; leave <host> out".to_owned()),
        other => return Err(format!("transport {other:?} is none of tcp and rdma; without <host> it is shm")),
    }
    let name = name.ok_or("server and volume name must be specified")?;
    plain("server", name, ":/")?;
    match host.attribute("port") {
        None => Ok(format!("openvstorage+{transport}:{name}/{volume}")),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) && is_number(port) => {
            Ok(format!("openvstorage+{transport}:{name}:{port}/{volume}"))
        }
        Some(port) => Err(format!("server port {port:?} is not a number from 1 to 65535")),
    }
}

/// Refuses what would be taken for something else on its way.
fn plain(what: &str, text: &str, separators: &str) -> Result<(), String> {
    let wrong = |c: char| separators.contains(c) || c.is_whitespace() || c.is_control() || "'\"\\".contains(c);
    match text.chars().find(|&c| wrong(c)) {
        Some(c) => Err(format!("{what} {text:?} has a {c:?} in it, which is not possible")),
        None => Ok(()),
    }
}

/// A comma begins the next option in an argument of QEMU, and is doubled where it does not.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

fn disk_args(disk: Node<'_, '_>, file: &str, slot: u32, boot: Option<&str>) -> Result<Vec<String>, String> {
    let target = child(disk, "target").ok_or("a disk has no <target dev='vda' bus='virtio'/>")?;
    let dev = target.attribute("dev").unwrap_or_default();
    let bus = target.attribute("bus").unwrap_or("virtio");
    if bus != "virtio" {
        return Err(format!("target bus {bus:?} is not virtio, the one that is known here"));
    }
    let nth = number_of(dev).ok_or_else(|| format!("target dev {dev:?} is no virtio disk's; write it like vda"))?;
    let id = format!("virtio-disk{nth}");
    let driver = child(disk, "driver");
    let attribute = |name| driver.and_then(|driver| driver.attribute(name));
    let format = attribute("type").unwrap_or("raw");
    plain("driver type", format, ":,=")?;
    let mut drive = format!("file={},if=none,id=drive-{id}", comma(file));
    if child(disk, "readonly").is_some() {
        drive.push_str(",readonly=on");
    }
    drive.push_str(&format!(",format={format}"));
    for (name, option) in [("cache", "cache"), ("io", "aio"), ("discard", "discard")] {
        if let Some(value) = attribute(name) {
            plain(name, value, ":,=")?;
            drive.push_str(&format!(",{option}={value}"));
        }
    }
    let mut device = format!("virtio-blk-pci,scsi=off,bus=pci.0,addr={slot:#x},drive=drive-{id},id={id}");
    if let Some(order) = boot {
        if !is_number(order) {
            return Err(format!("boot order {order:?} is not a number"));
        }
        device.push_str(&format!(",bootindex={order}"));
    }
    Ok(vec!["-drive".to_owned(), drive, "-device".to_owned(), device])
}

/// vda is 0, vdz 25, vdaa 26.
fn number_of(dev: &str) -> Option<u32> {
    let letters = dev.strip_prefix("vd").filter(|letters| (1..=3).contains(&letters.len()))?;
    let next = |sum: u32, byte: u8| byte.is_ascii_lowercase().then(|| sum * 26 + u32::from(byte - b'a') + 1);
    letters.bytes().try_fold(0, next).map(|sum| sum - 1)
}

#[cfg(test)]
#[path = "qemu_args_tests.rs"]
mod tests;
