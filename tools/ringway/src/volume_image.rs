//! Raw images in and out of volumes, through the target's own front door: as an NVMe/TCP host.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::control::{ControlErrorKind, VolumeInfo};
use ringway_core::host::HostConfig;
use ringway_core::limits::REQUEST_BYTES_MAX;
use ringway_core::request::Command;
use rustix::fs::{SeekFrom, seek};
use serde::Serialize;

use crate::attached::Attached;
use crate::cli::ImportArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Format;
use crate::size::Size;
use crate::volume::shaped;

/// What was moved.
#[derive(Debug, Serialize)]
struct Moved {
    volume: VolumeInfo,
    /// Bytes of the image.
    size: u64,
    /// Of these, bytes that were not zeros and went over the wire to be written.
    data: u64,
}

/// Makes a volume from an image; a volume that could not be filled is removed again.
pub(crate) fn import(client: &Client, args: &ImportArgs, format: Format) -> Result<(), Failure> {
    let file = File::open(&args.file).map_err(|error| Failure::io("open", &args.file, &error))?;
    let kind = file.metadata().map_err(|error| Failure::io("look at", &args.file, &error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let path = args.file.display();
        let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
        return Err(Failure::usage(format!("{path} is {what}; an image is a file or a block device")));
    }
    let size = seek(&file, SeekFrom::End(0)).map_err(|errno| Failure::io("measure", &args.file, &errno.into()))?;
    let rounded = size.next_multiple_of(u64::from(args.shape.lba.max(1)));
    let create = shaped(&args.name, Size(rounded), &args.shape)?;
    let volume = client.volume_create(&create)?;
    let outcome = attach(client, &volume).and_then(|mut attached| {
        let data = copy_in(&mut attached, &file, size, format, &args.file)?;
        attached.flush()?;
        Ok(data)
    });
    match outcome {
        Ok(data) => {
            let volume = client.volume(&args.name)?;
            format.print(&Moved { volume, size, data }, |moved| {
                format!(
                    "imported {} as {}: {}, of it {} data",
                    args.file.display(),
                    args.name,
                    Size(size),
                    Size(moved.data)
                )
            });
            Ok(())
        }
        Err(failure) => {
            if let Err(left) = client.volume_remove(&args.name, true) {
                return Err(Failure {
                    message: format!("{failure}; and volume {} is left behind: {left}", args.name),
                    ..failure
                });
            }
            Err(failure)
        }
    }
}

/// Writes the content of a volume, or of a snapshot, to a file.
pub(crate) fn export(client: &Client, name: &str, path: &Path, overwrite: bool, format: Format) -> Result<(), Failure> {
    let volume = client.volume(name)?;
    let file =
        File::options().write(true).create(true).create_new(!overwrite).truncate(true).open(path).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => Failure::new(
                    ControlErrorKind::Exists,
                    format!("{} exists already; --overwrite replaces it", path.display()),
                ),
                _ => Failure::io("make", path, &error),
            }
        })?;
    let written = |error: std::io::Error| Failure::io("write", path, &error);
    file.set_len(volume.size).map_err(written)?;
    let mut attached = attach(client, &volume)?;
    let data = copy_out(client, &mut attached, &file, &volume, format, path)?;
    file.sync_all().map_err(written)?;
    let size = volume.size;
    format.print(&Moved { volume, size, data }, |moved| {
        format!("exported {name} to {}: {}, of it {} data", path.display(), Size(size), Size(moved.data))
    });
    Ok(())
}

/// Attaches as a host that the volume allows: whoever may use the control socket may do so.
fn attach(client: &Client, volume: &VolumeInfo) -> Result<Attached, Failure> {
    let target = client.target()?;
    let addr = target.listeners.first().copied().map(reachable).ok_or_else(|| {
        Failure::new(
            ControlErrorKind::Unavailable,
            "the target has no listener through which the volume could be copied",
        )
    })?;
    let mut config = HostConfig::new(addr, &volume.nqn);
    if let Some(nqn) = volume.allowed_hosts.first() {
        config.host_nqn.clone_from(nqn);
    }
    Attached::connect(config)
}

/// An address that listens everywhere is reached over loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Writes what is not zero. A fresh volume reads as zeros everywhere else.
fn copy_in(attached: &mut Attached, file: &File, size: u64, format: Format, path: &Path) -> Result<u64, Failure> {
    let bar = progress(size, format);
    let lba = u64::from(attached.namespace().lba_bytes);
    let (mut at, mut data) = (0, 0);
    while at < size {
        // Holes of the image are not even read.
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(next) => next / u64::from(REQUEST_BYTES_MAX) * u64::from(REQUEST_BYTES_MAX),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let len = (size - at).min(u64::from(REQUEST_BYTES_MAX));
        let mut buf = attached.buffer(len.next_multiple_of(lba) as usize, &mut |_, _| Ok(()))?;
        file.read_exact_at(&mut buf[..len as usize], at).map_err(|error| Failure::io("read", path, &error))?;
        buf[len as usize..].fill(0);
        if buf.iter().any(|&byte| byte != 0) {
            data += buf.len() as u64;
            attached.submit(Command::Write { fua: false }, at, buf)?;
        }
        at += len;
        bar.set_position(at);
    }
    attached.finish(&mut |_, _| Ok(()))?;
    bar.finish_and_clear();
    Ok(data)
}

/// Reads what holds anything, and writes what of that is not zero: the rest of a file that was just made is a hole.
fn copy_out(
    client: &Client,
    attached: &mut Attached,
    file: &File,
    volume: &VolumeInfo,
    format: Format,
    path: &Path,
) -> Result<u64, Failure> {
    let size = volume.size;
    let bar = progress(size, format);
    let mut data = 0;
    let mut keep = |at: u64, bytes: &[u8]| {
        if bytes.iter().any(|&byte| byte != 0) {
            data += bytes.len() as u64;
            file.write_all_at(bytes, at).map_err(|error| Failure::io("write", path, &error))?;
        }
        bar.set_position(at);
        Ok(())
    };
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let held = client.volume_data(&volume.name, from)?;
        for range in held.ranges.iter().filter(|range| range.data) {
            let (mut at, end) = (range.offset, (range.offset + range.len).min(size));
            while at < end {
                let len = (end - at).min(u64::from(REQUEST_BYTES_MAX));
                let buf = attached.buffer(len as usize, &mut keep)?;
                attached.submit(Command::Read, at, buf)?;
                at += len;
            }
        }
        cursor = held.next;
    }
    attached.finish(&mut keep)?;
    bar.finish_and_clear();
    Ok(data)
}

fn progress(size: u64, format: Format) -> ProgressBar {
    if format == Format::Json {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("[{bar:40}] {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left")
        .expect("the template is valid");
    ProgressBar::new(size).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_everywhere_is_reached_over_loopback() {
        for (listener, reached) in
            [("0.0.0.0:4420", "127.0.0.1:4420"), ("[::]:4420", "[::1]:4420"), ("10.0.0.1:4420", "10.0.0.1:4420")]
        {
            assert_eq!(reachable(listener.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
