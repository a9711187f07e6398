//! A target inside this process and who asks it, on one thread: what the path from the router to the device and back costs, without
//! a transport.

use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringway_core::control::{ControlAnswer, ControlCall, ControlRequest, VolumeCreate};
use ringway_core::ids::{AssociationId, RequestId, VolumeId};
use ringway_core::request::{Command, Done, Request, Status};
use ringway_core::target::InProcess;
use ringway_reactor::buf::Buf;
use ringway_reactor::data::Data;

use super::Failed;

/// Of one request.
pub(super) const BLOCK_BYTES: u32 = 4096;
/// Turns between two looks at the clock.
const TURNS: u32 = 256;

/// Who asks the target on its own thread.
pub(super) struct Engine {
    target: InProcess,
    volume: VolumeId,
    random: SmallRng,
    ended: Vec<Done>,
}

impl Engine {
    /// Makes a volume on `target`.
    pub(super) fn new(mut target: InProcess, name: &str, size: u64) -> Result<Engine, Failed> {
        let create = VolumeCreate {
            name: name.into(),
            size,
            lba_bytes: BLOCK_BYTES,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        };
        let (tell, told) = mpsc::channel();
        let call = ControlCall::new(ControlRequest::VolumeCreate(create), move |answer| {
            // Who asked waits for it, unless it panicked.
            let _ = tell.send(answer);
        });
        target.control().control(call);
        let answer = loop {
            target.turn();
            match told.try_recv() {
                Ok(answer) => break answer?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err("the target dropped a control call".into()),
            }
        };
        let ControlAnswer::Volume(volume) = answer else { return Err(format!("not a volume: {answer:?}").into()) };
        // A fresh seed each time: offsets used before are in the cache of the host below.
        Ok(Engine { target, volume: volume.id, random: SmallRng::from_os_rng(), ended: Vec::new() })
    }

    fn submit(&mut self, slot: u64, command: Command, offset: u64, len: u32, data: Option<Data>) {
        let request = Request { association: AssociationId(1), volume: self.volume, command, offset, len, data };
        self.target.submit(RequestId(slot), request);
    }

    fn buffer(&self, len: u32) -> Result<Buf, Failed> {
        self.target.buffers().get(len as usize).ok_or_else(|| "the pool has no buffer left".into())
    }

    /// Takes what has ended; each gives its buffer back.
    fn turn(&mut self) -> Result<(), Failed> {
        self.target.turn();
        self.ended.extend(self.target.take_done());
        match self.ended.iter().find(|done| done.status != Status::Success) {
            Some(failed) => Err(format!("a request ended with {:?}", failed.status).into()),
            None => Ok(()),
        }
    }

    fn wait_for_one(&mut self) -> Result<(), Failed> {
        while self.ended.is_empty() {
            self.turn()?;
        }
        self.ended.clear();
        Ok(())
    }

    /// Writes `len` random bytes at the beginning of each stretch of `step` bytes, makes them durable, and turns on until what that
    /// leads to in the background has had its time.
    pub(super) fn fill(&mut self, size: u64, step: u64, len: u32) -> Result<(), Failed> {
        for offset in (0..size).step_by(step as usize) {
            let mut buf = self.buffer(len)?;
            self.random.fill(&mut buf[..]);
            self.submit(0, Command::Write { fua: false }, offset, len, Some(buf.into()));
            self.wait_for_one()?;
        }
        self.submit(0, Command::Flush, 0, 0, None);
        self.wait_for_one()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            self.turn()?;
        }
        Ok(())
    }

    /// Does `command` to blocks at random, one of each stretch of `step` bytes, `depth` at a time; how many were done in which time.
    pub(super) fn run(
        &mut self,
        command: Command,
        (size, step): (u64, u64),
        depth: usize,
        time: Duration,
    ) -> Result<(u64, Duration), Failed> {
        let stretches = size / step;
        for slot in 0..depth as u64 {
            let mut buf = self.buffer(BLOCK_BYTES)?;
            self.random.fill(&mut buf[..]);
            let offset = self.random.random_range(0..stretches) * step;
            self.submit(slot, command, offset, BLOCK_BYTES, Some(buf.into()));
        }
        let (mut requests, begun) = (0, Instant::now());
        let elapsed = loop {
            for _ in 0..TURNS {
                self.turn()?;
                requests += self.ended.len() as u64;
                let mut ended = std::mem::take(&mut self.ended);
                for done in ended.drain(..) {
                    let offset = self.random.random_range(0..stretches) * step;
                    let data = done.data.ok_or("a request did not give its buffer back")?;
                    self.submit(done.id.0, command, offset, BLOCK_BYTES, Some(data));
                }
                self.ended = ended;
            }
            if begun.elapsed() >= time {
                break begun.elapsed();
            }
        };
        let mut left = depth;
        while left > 0 {
            self.turn()?;
            left -= self.ended.drain(..).count();
        }
        Ok((requests, elapsed))
    }
}
