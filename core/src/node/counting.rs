//! What this reactor counts, copied to where other threads read it.

use std::sync::Arc;

use ringway_rdma::verbs::Counts;
use ringway_reactor::io::{Instant, Io};

use super::Node;
use crate::limits::CLUSTER;
use crate::metrics::{ConnectionLabel, Counter, QueuePairMetrics};
use crate::shard::RecordLog;

/// How often: the thresholds of a filling pool and the metrics need no more.
const COUNT_NS: u64 = 100_000_000;

impl<L: RecordLog> Node<L> {
    /// Copies the counters now and then.
    pub(super) fn count<I: Io>(&mut self, io: &I, now: Instant) {
        // A reactor that never sleeps counts its turns all the time.
        let counts = self.uncounted || self.interests.never_sleeps(self.index);
        if !counts || now < self.next_count {
            return;
        }
        // Registering goes on from turn to turn, without a completion.
        self.uncounted = self.transports.is_registering();
        self.next_count = now.plus_ns(COUNT_NS);
        self.count_shards();
        self.count_reactor(io);
        self.count_connections();
    }

    fn count_shards(&self) {
        for shard in self.local.iter() {
            let (stats, metrics) = (shard.stats(), self.metrics.shard(shard.id()));
            metrics.allocated_bytes.set(stats.clusters_used * CLUSTER);
            for record in self.directory.volumes_of(shard.id()) {
                metrics.volume(record.id).allocated_bytes.set(shard.mapped_by(record.id) * CLUSTER);
            }
            catch_up(&metrics.journal_groups, stats.groups);
            catch_up(&metrics.checkpoints, stats.checkpoints);
            catch_up(&metrics.map_page_loads, stats.nodes_loaded);
        }
    }

    fn count_reactor<I: Io>(&self, io: &I) {
        let (turns, metrics) = (&self.turns, &self.metrics.reactors[self.index]);
        catch_up(&metrics.polls_busy, turns.worked);
        catch_up(&metrics.polls_empty, turns.empty);
        catch_up(&metrics.sleeps, turns.sleeps);
        catch_up(&metrics.messages_sent, self.messages_sent);
        let (tcp, shm) = (self.transports.tcp.stats() + self.transports.rdma.stats(), self.transports.shm.stats());
        let vhost = self.transports.vhost.stats();
        let nbd = self.transports.nbd.stats();
        for (place, counters) in metrics.nbd.iter().enumerate() {
            catch_up(&counters.requests, nbd.requests[place]);
            catch_up(&counters.errors, nbd.errors[place]);
            catch_up(&counters.bytes, nbd.bytes[place]);
        }
        catch_up(&metrics.commands_malformed, vhost.malformed + nbd.malformed);
        let rings_waited = shm.waited_for_buffer + vhost.waited_for_buffer;
        catch_up(&metrics.waits_for_buffer, tcp.waited_for_buffer + rings_waited + nbd.waited_for_buffer);
        catch_up(&metrics.connections_accepted, tcp.accepted + shm.accepted + vhost.started + nbd.accepted);
        catch_up(&metrics.protocol_errors, tcp.terminated + shm.terminated + vhost.broken + nbd.broken);
        let rings_copied = shm.bytes_copied + vhost.bytes_copied;
        catch_up(&metrics.bytes_copied, tcp.bytes_copied + rings_copied + nbd.bytes_copied);
        let (rings, guests) = (self.transports.shm.registered_bytes(), self.transports.vhost.registered_bytes());
        metrics.registered_bytes.set(rings + guests);
        metrics.buffers_in_use.set(io.buffers().in_use() as u64);
        metrics.device_in_flight.set(io.in_flight() as u64);
    }

    fn count_connections(&mut self) {
        let (before, reactor) = (std::mem::take(&mut self.connections), self.index as u16);
        for seen in self.transports.seen() {
            let number = u64::from(reactor) << 48 | seen.number;
            let known = before.get(&number).filter(|metrics| metrics.label.subsystem == seen.subsystem);
            let metrics = known.map_or_else(
                || {
                    let label = ConnectionLabel {
                        peer: seen.peer.to_string(),
                        reactor,
                        queue: seen.queue,
                        subsystem: seen.subsystem.to_owned(),
                    };
                    self.metrics.forget_connection(number);
                    self.metrics.connection(number, label, seen.fabric.is_some())
                },
                Arc::clone,
            );
            catch_up(&metrics.commands, seen.commands);
            catch_up(&metrics.bytes_received, seen.bytes_received);
            catch_up(&metrics.bytes_sent, seen.bytes_sent);
            metrics.in_flight.set(seen.in_flight);
            if let (Some(counts), Some(metrics)) = (&seen.fabric, &metrics.fabric) {
                count_queue_pair(counts, metrics);
            }
            self.connections.insert(number, metrics);
        }
        for number in before.keys().filter(|number| !self.connections.contains_key(number)) {
            self.metrics.forget_connection(*number);
        }
        let transports = &self.transports;
        let sockets = transports.tcp.connections() + transports.rdma.connections() + transports.nbd.connections();
        self.interests.set_sockets(self.index, sockets);
    }
}

fn count_queue_pair(counts: &Counts, metrics: &QueuePairMetrics) {
    let posted = [counts.receives, counts.sends, counts.reads, counts.writes];
    metrics.posted.iter().zip(posted).for_each(|(counter, to)| catch_up(counter, to));
    let completed = [counts.succeeded, counts.failed];
    metrics.completed.iter().zip(completed).for_each(|(counter, to)| catch_up(counter, to));
    catch_up(&metrics.doorbells, counts.doorbells);
    catch_up(&metrics.signalled, counts.signalled);
    catch_up(&metrics.reads_waited, counts.reads_waited);
    catch_up(&metrics.rnr_exceeded, counts.rnr_exceeded);
    catch_up(&metrics.retry_exceeded, counts.retry_exceeded);
    metrics.credits.set(counts.credits);
}

/// Brings a counter to what has been counted elsewhere.
fn catch_up(counter: &Counter, to: u64) {
    counter.add(to.saturating_sub(counter.get()));
}
