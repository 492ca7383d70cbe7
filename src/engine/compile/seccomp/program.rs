//! From sections to classic BPF: architecture first, then a binary search over the numbers, then arguments.
//!
//! The program is written from its end: every jump of classic BPF goes forward, so each target's place is known by the
//! time something jumps to it. Conditional jumps reach 255 instructions; farther targets get a long jump in between.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccompOperator;

use super::SeccompError;
use super::rules::{Condition, Outcome, RET_KILL_PROCESS, Section};

/// The most instructions the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Conditional jumps farther than this go through a long jump; two of those may still be put in between.
const REACH: usize = 253;

// Instruction codes of linux/bpf_common.h, and offsets in struct seccomp_data.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A place in the program, as its distance from the end: that many instructions run from it to the last one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label(usize);

/// `struct sock_filter`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

/// The program so far, last instruction first.
struct Builder<'a> {
    reversed: Vec<Instruction>,
    /// The nearest return of each value.
    returns: BTreeMap<u32, Label>,
    /// Tests of arguments that are in the program already: one rule often names many calls.
    tests: Vec<(&'a Outcome, Label)>,
}

/// Assembles a filter into the bytes of `struct sock_filter[]`, in this machine's (little-endian) order.
pub(super) fn assemble(sections: &[Section]) -> Result<Vec<u8>, SeccompError> {
    let mut builder = Builder { reversed: Vec::new(), returns: BTreeMap::new(), tests: Vec::new() };
    // A call of an architecture that the profile does not list: numbers mean other calls there. The whole process goes,
    // as one that lost a thread alone would hang on that thread's locks.
    let mut next = builder.returning(RET_KILL_PROCESS);
    for section in sections.iter().rev() {
        let tree = builder.tree(&section.stretches);
        let entry = builder.load(NUMBER, tree);
        next = builder.branch(JUMP_EQUAL, section.audit, entry, next);
    }
    builder.load(ARCH, next);
    builder.finish()
}

impl<'a> Builder<'a> {
    fn push(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jump_true, jump_false, k });
        Label(self.reversed.len())
    }

    /// Instructions between the one that would be pushed now and a label.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }

    /// Makes sure that the next instruction runs on into a label.
    fn fall_into(&mut self, label: Label) {
        if self.distance(label) > 0 {
            self.long_jump(label);
        }
    }

    fn long_jump(&mut self, label: Label) -> Label {
        let distance = u32::try_from(self.distance(label)).unwrap_or(u32::MAX);
        self.push(JUMP, 0, 0, distance)
    }

    fn load(&mut self, offset: u32, then: Label) -> Label {
        self.fall_into(then);
        self.push(LOAD, 0, 0, offset)
    }

    fn branch(&mut self, code: u16, k: u32, if_true: Label, if_false: Label) -> Label {
        if if_true == if_false {
            return if_true;
        }
        let mut near = [if_true, if_false];
        for label in &mut near {
            if self.distance(*label) > REACH {
                *label = self.long_jump(*label);
            }
        }
        let [jump_true, jump_false] =
            near.map(|label| u8::try_from(self.distance(label)).expect("a long jump was put before what is too far"));
        self.push(code, jump_true, jump_false, k)
    }

    fn returning(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(label) if self.distance(*label) <= REACH => *label,
            _ => {
                let label = self.push(RETURN, 0, 0, value);
                self.returns.insert(value, label);
                label
            }
        }
    }

    /// Searches the stretch that the number in the accumulator lies in.
    fn tree(&mut self, stretches: &'a [(u32, Outcome)]) -> Label {
        if let [(_, outcome)] = stretches {
            return self.outcome(outcome);
        }
        let (left, right) = stretches.split_at(stretches.len() / 2);
        let start = right[0].0;
        let right = self.tree(right);
        let left = self.tree(left);
        self.branch(JUMP_GREATER_EQUAL, start, right, left)
    }

    fn outcome(&mut self, outcome: &'a Outcome) -> Label {
        let (rules, otherwise) = match outcome {
            Outcome::Return(value) => return self.returning(*value),
            Outcome::Conditional(rules, otherwise) => (rules, *otherwise),
        };
        if let Some((_, label)) = self.tests.iter().find(|(present, _)| *present == outcome) {
            return *label;
        }
        let mut next = self.returning(otherwise);
        for rule in rules.iter().rev() {
            let mut holds = self.returning(rule.value);
            for condition in rule.conditions.iter().rev() {
                holds = self.condition(condition, holds, next);
            }
            next = holds;
        }
        self.tests.push((outcome, next));
        next
    }

    /// Tests one argument: on conventions with 64-bit arguments the high word decides first.
    fn condition(&mut self, condition: &Condition, holds: Label, fails: Label) -> Label {
        use LinuxSeccompOperator as Op;
        let value = condition.value;
        match condition.operator {
            Op::ScmpCmpEq => self.equal(condition, u64::MAX, value, holds, fails),
            Op::ScmpCmpNe => self.equal(condition, u64::MAX, value, fails, holds),
            Op::ScmpCmpMaskedEq => self.equal(condition, value, condition.masked, holds, fails),
            Op::ScmpCmpGt => self.ordered(condition, JUMP_GREATER, holds, fails),
            Op::ScmpCmpGe => self.ordered(condition, JUMP_GREATER_EQUAL, holds, fails),
            // What is not above is below or equal, and so on: the targets change places.
            Op::ScmpCmpLe => self.ordered(condition, JUMP_GREATER, fails, holds),
            Op::ScmpCmpLt => self.ordered(condition, JUMP_GREATER_EQUAL, fails, holds),
        }
    }

    fn equal(&mut self, condition: &Condition, mask: u64, value: u64, holds: Label, fails: Label) -> Label {
        let holds = self.word(condition.index, 0, low(mask), low(value), holds, fails);
        if condition.wide { self.word(condition.index, 4, high(mask), high(value), holds, fails) } else { holds }
    }

    fn word(&mut self, index: u8, half: u32, mask: u32, value: u32, holds: Label, fails: Label) -> Label {
        if mask == 0 {
            return if value == 0 { holds } else { fails };
        }
        let mut test = self.branch(JUMP_EQUAL, value, holds, fails);
        if mask != u32::MAX {
            self.fall_into(test);
            test = self.push(AND, 0, 0, mask);
        }
        self.load(ARGUMENTS + 8 * u32::from(index) + half, test)
    }

    fn ordered(&mut self, condition: &Condition, code: u16, above: Label, below: Label) -> Label {
        let offset = ARGUMENTS + 8 * u32::from(condition.index);
        let test = self.branch(code, low(condition.value), above, below);
        let low_word = self.load(offset, test);
        if !condition.wide {
            return low_word;
        }
        let equal = self.branch(JUMP_EQUAL, high(condition.value), low_word, below);
        let test = self.branch(JUMP_GREATER, high(condition.value), above, equal);
        self.load(offset + 4, test)
    }

    fn finish(self) -> Result<Vec<u8>, SeccompError> {
        let instructions = self.reversed.len();
        if instructions > MAX_INSTRUCTIONS {
            return Err(SeccompError::TooLong { instructions });
        }
        let mut bytes = Vec::with_capacity(instructions * 8);
        for instruction in self.reversed.iter().rev() {
            bytes.extend_from_slice(&instruction.code.to_ne_bytes());
            bytes.extend_from_slice(&[instruction.jump_true, instruction.jump_false]);
            bytes.extend_from_slice(&instruction.k.to_ne_bytes());
        }
        Ok(bytes)
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
