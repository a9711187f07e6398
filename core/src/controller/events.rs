//! Asynchronous events (base 5.2): requests that wait, and events that wait for a request.
//!
//! An event of a kind is told once and then masked until the host has read the log page that it names; what happens
//! meanwhile is in that page.

use std::collections::{BTreeSet, VecDeque};

use crate::limits::EVENT_REQUESTS_MAX;
use crate::wire::completion::NvmeStatus;
use crate::wire::features::{AsyncEvent, EVENT_DISCOVERY, EVENT_NAMESPACE};
use crate::wire::log_page::{WARNING_READ_ONLY, WARNING_SPARE, page};

/// Events and the requests for them.
#[derive(Debug, Default)]
pub(super) struct Events {
    configuration: u32,
    /// Command identifiers, oldest first.
    requests: VecDeque<u16>,
    waiting: VecDeque<AsyncEvent>,
    /// Pages whose event was told and which have not been read since.
    masked: BTreeSet<u8>,
}

impl Events {
    pub(super) fn configuration(&self) -> u32 {
        self.configuration
    }

    /// Which events are wanted; others that wait are forgotten.
    pub(super) fn configure(&mut self, configuration: u32) {
        self.configuration = configuration;
        self.waiting.retain(|&event| wanted(event, configuration));
    }

    /// A host waits for an event.
    pub(super) fn request(&mut self, cid: u16) -> Result<(), NvmeStatus> {
        if self.requests.len() == EVENT_REQUESTS_MAX {
            return Err(NvmeStatus::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// Takes a request back. Returns whether it was there.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&waiting| waiting != cid);
        self.requests.len() < before
    }

    /// Something happened.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        if wanted(event, self.configuration) && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// The host has read a log page and wants to hear of it again.
    pub(super) fn page_read(&mut self, log_page: u8) {
        self.masked.remove(&log_page);
        // What it has just read tells it what these would.
        self.waiting.retain(|event| event.log_page() != log_page);
    }

    /// A request that is answered now, and the event that answers it.
    pub(super) fn take(&mut self) -> Option<(u16, AsyncEvent)> {
        if self.requests.is_empty() {
            return None;
        }
        let at = self.waiting.iter().position(|event| !self.masked.contains(&event.log_page()))?;
        let event = self.waiting.remove(at).expect("found above");
        self.masked.insert(event.log_page());
        self.requests.pop_front().map(|cid| (cid, event))
    }
}

fn wanted(event: AsyncEvent, configuration: u32) -> bool {
    let bit = match event {
        AsyncEvent::NAMESPACE_CHANGED => EVENT_NAMESPACE,
        AsyncEvent::DISCOVERY_CHANGED => EVENT_DISCOVERY,
        AsyncEvent::SPARE_BELOW_THRESHOLD => u32::from(WARNING_SPARE),
        AsyncEvent::RELIABILITY_DEGRADED => u32::from(WARNING_READ_ONLY),
        _ => 0,
    };
    assert!(event.log_page() == page::SMART || bit > 0xFF, "critical warnings name the SMART log");
    configuration & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> Events {
        let mut events = Events::default();
        events.configure(EVENT_NAMESPACE | u32::from(WARNING_SPARE));
        events
    }

    #[test]
    fn an_event_is_told_once_until_its_page_is_read() {
        let mut events = listening();
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.take(), None, "nobody asks");
        events.request(7).unwrap();
        events.request(8).unwrap();
        assert_eq!(events.take(), Some((7, AsyncEvent::NAMESPACE_CHANGED)));
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.take(), None, "masked");
        events.raise(AsyncEvent::SPARE_BELOW_THRESHOLD);
        assert_eq!(events.take(), Some((8, AsyncEvent::SPARE_BELOW_THRESHOLD)), "each page has its own mask");
        events.request(9).unwrap();
        events.page_read(page::CHANGED_NAMESPACES);
        assert_eq!(events.take(), None, "the page said so already");
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.take(), Some((9, AsyncEvent::NAMESPACE_CHANGED)));
    }

    #[test]
    fn an_event_that_the_host_did_not_ask_for_is_not_told() {
        let mut events = listening();
        events.request(1).unwrap();
        events.raise(AsyncEvent::DISCOVERY_CHANGED);
        events.raise(AsyncEvent::RELIABILITY_DEGRADED);
        assert_eq!(events.take(), None);
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        events.configure(0);
        assert_eq!(events.take(), None);
    }

    #[test]
    fn requests_beyond_the_limit_are_refused_and_aborted_ones_are_gone() {
        let mut events = listening();
        for cid in 0..EVENT_REQUESTS_MAX as u16 {
            events.request(cid).unwrap();
        }
        assert_eq!(events.request(99), Err(NvmeStatus::ASYNC_EVENT_LIMIT_EXCEEDED.dnr()));
        assert!(events.abort(0) && !events.abort(0));
        events.request(99).unwrap();
        events.raise(AsyncEvent::NAMESPACE_CHANGED);
        assert_eq!(events.take(), Some((1, AsyncEvent::NAMESPACE_CHANGED)));
    }
}
