//! The cut as a machine small enough to be looked at whole: shards that tick, mail that waits, clients that tell each other what
//! they know by ways that no target sees, a coordinator, and other coordinators.
//!
//! Each [`Action`] is one step of one thread; everything that can be interleaved is. What is promised is checked by
//! [`State::violation`] in every state and by [`State::torn`] at the end.

/// How the cut is made. [`Rules::OURS`], or one thing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// One word for all, stepped once; else each shard has its own, flipped one after the other.
    pub one_word: bool,
    /// Answers to writes beyond the cut are held until every shard has flipped.
    pub hold_acknowledgements: bool,
    /// Shards pull what has arrived, then read the word; else they read it first.
    pub pull_first: bool,
    /// Every shard is armed before the word is stepped.
    pub arm: bool,
    /// A seal waits for running writes that belong to the cut.
    pub seal_waits: bool,
    /// The word is stepped; else its next value, as the coordinator had read it when it armed, is stored.
    pub step: bool,
}

impl Rules {
    pub(crate) const OURS: Rules = Rules {
        one_word: true,
        hold_acknowledgements: false,
        pull_first: true,
        arm: true,
        seal_waits: true,
        step: true,
    };
}

/// What a client does, one after the other. There is one block a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Write { shard: u8, value: u8 },
    Read { shard: u8 },
}

impl Op {
    fn shard(self) -> usize {
        match self {
            Op::Write { shard, .. } | Op::Read { shard } => usize::from(shard),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    next: u8,
    waits: bool,
    /// Writes it knows of: acknowledged to it, read by it, or told: one bit a value.
    knows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Part {
    client: u8,
    op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shard {
    mail: Vec<Part>,
    pulled: Vec<Part>,
    running: Vec<(Part, u8)>,
    /// The word as last read.
    seen: u8,
    /// It was read after the last pull.
    fresh: bool,
    arming: bool,
    armed: Option<u8>,
    cut: Option<u8>,
    /// Birth and value, newest last.
    versions: Vec<(u8, u8)>,
    /// What the block was when the shard sealed.
    sealed: Option<u8>,
    held: Vec<Part>,
}

impl Shard {
    /// The block at the cut.
    fn at(&self, cut: u8) -> u8 {
        self.versions.iter().rev().find(|&&(birth, _)| birth <= cut).map_or(0, |&(_, value)| value)
    }

    fn live(&self) -> u8 {
        self.versions.last().map_or(0, |&(_, value)| value)
    }

    fn redirects(&self, birth: u8, stamp: u8) -> bool {
        let armed = self.armed.is_some_and(|since| birth < stamp && since < stamp);
        armed || self.cut.is_some_and(|cut| birth <= cut && cut < stamp)
    }
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    word: u8,
    /// Steps that other coordinators still take.
    foreign: u8,
    clients: Vec<Client>,
    shards: Vec<Shard>,
    /// The word as the coordinator read it before it armed.
    noted: Option<u8>,
    cut: Option<u8>,
    /// Times that clients still tell each other.
    talks: u8,
    /// What each write's client knew when it wrote.
    knew: Vec<u32>,
    /// The order in which writes of each shard were done.
    order: Vec<Vec<u8>>,
    /// The word has gone back, or a write was lost.
    broken: Option<&'static str>,
}

/// One step of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Issue(usize),
    Talk(usize, usize),
    Pull(usize),
    Read(usize),
    Start(usize),
    Complete(usize, usize),
    Arm(usize),
    Cut,
    Learn(usize),
    Seal(usize),
    Foreign,
    Release,
}

/// The world that states are of.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub rules: Rules,
    pub scripts: Vec<Vec<Op>>,
    pub shards: usize,
    pub talks: u8,
    pub foreign: u8,
}

impl Model {
    pub(crate) fn start(&self) -> State {
        let shard = Shard {
            mail: vec![],
            pulled: vec![],
            running: vec![],
            seen: 1,
            fresh: false,
            arming: false,
            armed: None,
            cut: None,
            versions: vec![(1, 0)],
            sealed: None,
            held: vec![],
        };
        let values = self.scripts.iter().flatten().filter(|op| matches!(op, Op::Write { .. })).count();
        State {
            word: 1,
            foreign: self.foreign,
            clients: vec![Client { next: 0, waits: false, knows: 0 }; self.scripts.len()],
            shards: vec![shard; self.shards],
            noted: None,
            cut: None,
            talks: self.talks,
            knew: vec![0; values + 1],
            order: vec![vec![0]; self.shards],
            broken: None,
        }
    }

    /// What can happen next.
    pub(crate) fn actions(&self, state: &State, out: &mut Vec<Action>) {
        out.clear();
        for (n, client) in state.clients.iter().enumerate() {
            if !client.waits && usize::from(client.next) < self.scripts[n].len() {
                out.push(Action::Issue(n));
            }
            if state.talks > 0 {
                let others = (0..state.clients.len()).filter(|&m| client.knows & !state.clients[m].knows != 0);
                out.extend(others.map(|m| Action::Talk(n, m)));
            }
        }
        for (n, shard) in state.shards.iter().enumerate() {
            if !shard.mail.is_empty() && (self.rules.pull_first || !shard.fresh || shard.pulled.is_empty()) {
                out.push(Action::Pull(n));
            }
            let later = shard.seen != state.word || shard.arming;
            let unread = if self.rules.pull_first { !shard.fresh || later } else { later && shard.pulled.is_empty() };
            if self.rules.one_word && unread {
                out.push(Action::Read(n));
            }
            if self.may_start(shard) {
                out.push(Action::Start(n));
            }
            out.extend((0..shard.running.len()).map(|at| Action::Complete(n, at)));
            if state.cut.is_none() && shard.armed.is_none() && !shard.arming && self.rules.arm && self.rules.one_word {
                out.push(Action::Arm(n));
            }
            if let Some(cut) = state.cut {
                if shard.cut.is_none() {
                    out.push(Action::Learn(n));
                }
                let running =
                    shard.running.iter().any(|&(part, stamp)| stamp <= cut && matches!(part.op, Op::Write { .. }));
                let passed = shard.seen > cut && !(running && self.rules.seal_waits);
                if shard.cut.is_some() && shard.sealed.is_none() && passed {
                    out.push(Action::Seal(n));
                }
            }
        }
        let armed = !self.rules.arm || !self.rules.one_word || state.shards.iter().all(|shard| shard.armed.is_some());
        if state.cut.is_none() && armed {
            out.push(Action::Cut);
        }
        if state.foreign > 0 && self.rules.one_word {
            out.push(Action::Foreign);
        }
        if self.all_flipped(state) && state.shards.iter().any(|shard| !shard.held.is_empty()) {
            out.push(Action::Release);
        }
    }

    fn may_start(&self, shard: &Shard) -> bool {
        let Some(part) = shard.pulled.first() else { return false };
        let fresh = shard.fresh || !self.rules.pull_first || !self.rules.one_word;
        // Overlapping writes wait for each other.
        let writes = matches!(part.op, Op::Write { .. });
        fresh && !(writes && shard.running.iter().any(|(part, _)| matches!(part.op, Op::Write { .. })))
    }

    fn all_flipped(&self, state: &State) -> bool {
        state.cut.is_some_and(|cut| state.shards.iter().all(|shard| shard.seen > cut))
    }

    /// Takes a step.
    pub(crate) fn take(&self, state: &mut State, action: Action) {
        match action {
            Action::Issue(n) => {
                let client = &mut state.clients[n];
                let op = self.scripts[n][usize::from(client.next)];
                client.next += 1;
                client.waits = true;
                if let Op::Write { value, .. } = op {
                    state.knew[usize::from(value)] = client.knows;
                }
                state.shards[op.shard()].mail.push(Part { client: n as u8, op });
            }
            Action::Talk(from, to) => {
                state.talks -= 1;
                state.clients[to].knows |= state.clients[from].knows;
            }
            Action::Pull(n) => {
                let shard = &mut state.shards[n];
                shard.pulled.append(&mut shard.mail);
                shard.fresh = false;
            }
            Action::Read(n) => {
                let shard = &mut state.shards[n];
                (shard.seen, shard.fresh) = (state.word, true);
                if std::mem::take(&mut shard.arming) {
                    shard.armed = Some(shard.seen);
                }
            }
            Action::Start(n) => {
                let shard = &mut state.shards[n];
                let part = shard.pulled.remove(0);
                shard.running.push((part, shard.seen));
            }
            Action::Complete(n, at) => self.complete(state, n, at),
            Action::Arm(n) => {
                state.noted.get_or_insert(state.word);
                state.shards[n].arming = true;
                state.shards[n].fresh = false;
            }
            Action::Cut => self.cut(state),
            Action::Learn(n) => {
                let shard = &mut state.shards[n];
                shard.armed = None;
                shard.cut = state.cut;
                if !self.rules.one_word {
                    // The flip of this shard's own word.
                    shard.seen = state.cut.expect("it was cut") + 1;
                }
            }
            Action::Seal(n) => {
                let shard = &mut state.shards[n];
                shard.sealed = Some(shard.at(state.cut.expect("it was cut")));
            }
            Action::Foreign => {
                state.foreign -= 1;
                state.word += 1;
            }
            Action::Release => {
                let held: Vec<_> = state.shards.iter_mut().flat_map(|shard| shard.held.drain(..)).collect();
                held.into_iter().for_each(|part| acknowledge(state, part));
            }
        }
    }

    fn cut(&self, state: &mut State) {
        if self.rules.step || !self.rules.one_word {
            state.cut = Some(state.word);
            state.word += u8::from(self.rules.one_word);
            return;
        }
        let noted = state.noted.unwrap_or(state.word);
        if state.word > noted + 1 {
            state.broken = Some("the word went back");
        }
        state.cut = Some(noted);
        state.word = noted + 1;
    }

    fn complete(&self, state: &mut State, n: usize, at: usize) {
        let shard = &mut state.shards[n];
        let (part, stamp) = shard.running.remove(at);
        match part.op {
            Op::Read { .. } => {
                let value = shard.live();
                let client = &mut state.clients[usize::from(part.client)];
                client.waits = false;
                client.knows |= if value > 0 { 1 << value } else { 0 };
            }
            Op::Write { value, .. } => {
                let &(birth, _) = shard.versions.last().expect("there is always one");
                if birth > stamp {
                    state.broken = Some("a write landed below a newer version");
                } else if shard.redirects(birth, stamp) {
                    shard.versions.push((stamp, value));
                } else {
                    shard.versions.last_mut().expect("just seen").1 = value;
                }
                state.order[n].push(value);
                let beyond = state.cut.is_some_and(|cut| stamp > cut);
                if self.rules.hold_acknowledgements && beyond && !self.all_flipped(state) {
                    state.shards[n].held.push(part);
                } else {
                    acknowledge(state, part);
                }
            }
        }
    }
}

fn acknowledge(state: &mut State, part: Part) {
    let client = &mut state.clients[usize::from(part.client)];
    client.waits = false;
    if let Op::Write { value, .. } = part.op {
        client.knows |= 1 << value;
    }
}

impl State {
    /// What must hold in every state: a sealed block stays as it is, the word only grows, and nothing is lost.
    pub(crate) fn violation(&self) -> Option<&'static str> {
        if self.broken.is_some() {
            return self.broken;
        }
        for (shard, order) in self.shards.iter().zip(&self.order) {
            if shard.sealed.is_some_and(|sealed| shard.at(self.cut.expect("it was cut")) != sealed) {
                return Some("a snapshot changed after its seal");
            }
            if order.last() != Some(&shard.live()) {
                return Some("a write was lost");
            }
        }
        None
    }

    /// Whether every shard has sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.shards.iter().all(|shard| shard.sealed.is_some())
    }

    /// Whether the snapshot holds a write without one that its client knew of.
    pub(crate) fn torn(&self) -> Option<&'static str> {
        let cut = self.cut.filter(|_| self.is_sealed())?;
        let held = held_of(&self.order, &self.shards, cut);
        // Everything up to what a block holds is in the snapshot.
        let inside = self.order.iter().zip(&held).flat_map(|(order, &until)| &order[..=until]);
        let outside: u32 =
            self.order.iter().zip(&held).flat_map(|(order, &until)| &order[until + 1..]).map(|&value| 1 << value).sum();
        inside.clone().any(|&value| self.knew[usize::from(value)] & outside != 0).then_some("the cut is torn")
    }
}

/// Of each shard the place in its order of what its block holds at the cut.
fn held_of(order: &[Vec<u8>], shards: &[Shard], cut: u8) -> Vec<usize> {
    let place = |(shard, order): (&Shard, &Vec<u8>)| order.iter().position(|&value| value == shard.at(cut));
    shards.iter().zip(order).map(|of| place(of).expect("a block holds what was written")).collect()
}
