//! A target of one reactor on its caller's thread, without connections: what a request costs between the transport and the
//! device can be measured, with every part of the path as it is in [`super::start()`].
//!
//! Invariant: it is turned on the thread that made it, the only one that submits to its ring.

use std::path::PathBuf;
use std::sync::Arc;
use std::vec::Drain;

use ringway_reactor::buf::BufPool;
use ringway_reactor::mailbox::Mesh;
use ringway_reactor::pin::allowed_cores;
use ringway_reactor::turn::Reactor;
use ringway_reactor::uring::{UringConfig, UringIo};

use super::assembly::{Fabric, Plan};
use super::buffers;
use super::config::{PoolSpec, TargetConfig};
use super::error::StartError;
use super::grow::NeverGrows;
use super::log::ProcessLog;
use super::log_place::PoolLogs;
use super::running::Port;
use super::start::{MAILBOX, open_devices, open_pool, sources, surrounds};
use crate::control::ControlPort;
use crate::ids::RequestId;
use crate::node::Node;
use crate::node::message::Message;
use crate::request::{Done, Request};

/// A pool, served to this thread.
pub struct InProcess {
    reactor: Reactor<UringIo, Message, Node<ProcessLog>>,
    control: Arc<dyn ControlPort>,
    buffers: &'static BufPool,
}

impl InProcess {
    /// A pool of so many bytes that forget what is written and read as zeros.
    pub fn null(bytes: u64) -> Result<InProcess, StartError> {
        let mut config = TargetConfig::new(PoolSpec::Null(bytes), vec![0]);
        // A pool that ends with the process keeps no log there.
        config.runtime = PathBuf::new();
        Self::open(&config)
    }

    /// The pool of `config`, which says too how to format it where nothing is there yet. It listens nowhere, and runs where this
    /// thread runs; the kernel's workers are kept to this thread's other cores, if it has any.
    pub fn open(config: &TargetConfig) -> Result<InProcess, StartError> {
        let mut devices = open_devices(config, &mut |_| {})?;
        let (pool, PoolLogs { mut logs, .. }) = open_pool(config, &devices)?;
        devices.keep(pool.superblocks.len());
        let plan = Plan::new(pool, surrounds(config, &devices));
        let buffers = buffers::take(0, config.buffer_bytes);
        let mut uring = UringConfig::new(vec![buffers], 0);
        uring.worker_cores = allowed_cores()?.into_iter().filter(|core| !config.cores.contains(core)).collect();
        let mut io = UringIo::new(&uring)?;
        for file in &devices.files {
            io.add_file(file)?;
        }
        io.enable();
        let recovered = plan.recover(&mut io, 0, |shard| {
            let at = logs.iter().position(|(of, _)| *of == shard).expect("a log for each shard");
            logs.swap_remove(at).1
        })?;
        let damaged = recovered.damaged();
        let first = (sources(Box::new(NeverGrows(config.pool.clone())), None), damaged);
        let node = plan.node(0, recovered, config.buffer_bytes, None, Fabric::default(), Some(first));
        let mail = Mesh::new(1, MAILBOX).pop().expect("a mesh of one");
        let control = Arc::new(Port::new(mail.injector()));
        Ok(InProcess { reactor: Reactor::new(io, mail, node), control, buffers })
    }

    /// Takes control calls; they are answered within some turns.
    #[must_use]
    pub fn control(&self) -> Arc<dyn ControlPort> {
        Arc::clone(&self.control)
    }

    /// The buffers that its requests move data in.
    #[must_use]
    pub fn buffers(&self) -> &'static BufPool {
        self.buffers
    }

    /// Takes a request, to be started in the next turn.
    pub fn submit(&mut self, id: RequestId, request: Request) {
        self.reactor.application().submit(id, request);
    }

    /// One turn of the reactor, without sleeping.
    pub fn turn(&mut self) {
        self.reactor.turn(false);
    }

    /// Requests that have ended.
    pub fn take_done(&mut self) -> Drain<'_, Done> {
        self.reactor.application().take_done()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::control::{ControlAnswer, ControlCall, ControlRequest, VolumeCreate};
    use crate::ids::AssociationId;
    use crate::request::{Command, Status};

    #[test]
    fn a_written_block_of_a_null_pool_reads_as_zeros_from_its_device() {
        let mut target = InProcess::null(1 << 30).unwrap();
        let (tell, told) = mpsc::channel();
        let create = VolumeCreate {
            name: "v".into(),
            size: 64 << 20,
            lba_bytes: 4096,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        };
        let reply = move |answer| drop(tell.send(answer));
        target.control().control(ControlCall::new(ControlRequest::VolumeCreate(create), reply));
        let volume = loop {
            target.turn();
            match told.try_recv() {
                Ok(answer) => break answer.unwrap(),
                Err(error) => assert_eq!(error, mpsc::TryRecvError::Empty),
            }
        };
        let ControlAnswer::Volume(volume) = volume else { panic!("{volume:?}") };
        for (id, command) in [Command::Write { fua: false }, Command::Read].into_iter().enumerate() {
            let mut buf = target.buffers().get(4096).unwrap();
            buf.fill(0xA5);
            let association = AssociationId(1);
            let request =
                Request { association, volume: volume.id, command, offset: 8192, len: 4096, data: Some(buf.into()) };
            target.submit(RequestId(id as u64), request);
            let done = loop {
                target.turn();
                if let Some(done) = target.take_done().next() {
                    break done;
                }
            };
            assert_eq!((done.id, done.status), (RequestId(id as u64), Status::Success));
            let expected = if command == Command::Read { 0 } else { 0xA5 };
            assert!(done.data.unwrap().bytes().iter().all(|&byte| byte == expected));
        }
    }
}
