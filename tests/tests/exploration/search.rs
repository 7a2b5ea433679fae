//! Breadth-first search through everything that can happen.

use core::fmt;
use core::hash::Hash;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// A protocol as a graph: states, and the steps between them.
pub(crate) trait Model {
    type State: Clone + Eq + Hash;

    fn initial(&self) -> Self::State;

    /// Everything that can happen next.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Step<Self::State>>);

    /// What is wrong, in words.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Everything that was published is done.
    fn is_done(&self, state: &Self::State) -> bool;
}

/// Something happens.
pub(crate) struct Step<S> {
    pub(crate) label: Label,
    /// Nobody may rely on it happening, and nobody on its not happening.
    pub(crate) is_fault: bool,
    pub(crate) after: S,
}

/// What happens, where, to what.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    pub(crate) what: &'static str,
    pub(crate) worker: Option<usize>,
    pub(crate) delivery: Option<usize>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(worker) = self.worker {
            write!(f, "worker {worker}: ")?;
        }
        f.write_str(self.what)?;
        match self.delivery {
            Some(delivery) => write!(f, " {delivery}"),
            None => Ok(()),
        }
    }
}

/// How much was seen.
#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
}

/// A way to something wrong, as short as any.
#[derive(Debug)]
pub(crate) struct Counterexample {
    pub(crate) what: &'static str,
    trace: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after", self.what)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "    {step}"))
    }
}

/// What [`Counterexample::what`] says of a state from which the work cannot be ended any more, although nothing else goes
/// wrong.
pub(crate) const STUCK: &str = "nothing that can still happen ends the work";

/// Looks at every state that can be reached.
pub(crate) fn explore<M: Model>(model: &M) -> Result<Explored, Counterexample> {
    let mut search = Search::<M> {
        known: HashMap::default(),
        states: Vec::new(),
        came_by: Vec::new(),
        back: Vec::new(),
        done: Vec::new(),
        steps: 0,
    };
    search.reach(model.initial(), None);
    let mut next = 0_u32;
    let mut steps = Vec::new();
    while let Some(state) = search.states.get(next as usize).cloned() {
        if let Some(what) = model.broken(&state) {
            return Err(search.way_to(next, what));
        }
        if model.is_done(&state) {
            search.done.push(next);
        }
        model.steps(&state, &mut steps);
        for step in steps.drain(..) {
            search.steps += 1;
            let reached = search.reach(step.after, Some((next, step.label)));
            if !step.is_fault {
                search.back.push((reached, next));
            }
        }
        next += 1;
    }
    match search.first_stuck() {
        Some(stuck) => Err(search.way_to(stuck, STUCK)),
        None => Ok(Explored { states: search.states.len(), steps: search.steps }),
    }
}

struct Search<M: Model> {
    /// By their numbers; there are millions, so those are short.
    known: HashMap<M::State, u32, Xxh3DefaultBuilder>,
    states: Vec<M::State>,
    /// The step by which each state was first reached.
    came_by: Vec<Option<(u32, Label)>>,
    /// Steps that are no faults, backwards.
    back: Vec<(u32, u32)>,
    done: Vec<u32>,
    steps: usize,
}

impl<M: Model> Search<M> {
    fn reach(&mut self, state: M::State, by: Option<(u32, Label)>) -> u32 {
        match self.known.entry(state) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let number = u32::try_from(self.states.len()).unwrap_or(u32::MAX);
                self.states.push(entry.key().clone());
                self.came_by.push(by);
                entry.insert(number);
                number
            }
        }
    }

    /// The first state from which no faultless way leads to an end.
    fn first_stuck(&mut self) -> Option<u32> {
        self.back.sort_unstable();
        let mut can_end = vec![false; self.states.len()];
        let mut open = core::mem::take(&mut self.done);
        while let Some(state) = open.pop() {
            if core::mem::replace(&mut can_end[state as usize], true) {
                continue;
            }
            let first = self.back.partition_point(|(to, _)| *to < state);
            let before = self.back[first..].iter().take_while(|(to, _)| *to == state);
            open.extend(before.map(|(_, from)| *from).filter(|from| !can_end[*from as usize]));
        }
        (0..).zip(can_end).find(|(_, can_end)| !can_end).map(|(state, _)| state)
    }

    fn way_to(&self, mut state: u32, what: &'static str) -> Counterexample {
        let mut trace = Vec::new();
        while let Some((before, label)) = &self.came_by[state as usize] {
            trace.push(label.to_string());
            state = *before;
        }
        trace.reverse();
        Counterexample { what, trace }
    }
}
