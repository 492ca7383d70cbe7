//! Device rules as eBPF, for cgroup v2: a `BPF_PROG_TYPE_CGROUP_DEVICE` program, hand-assembled.
//!
//! One block an exception, left as soon as something does not match; the default at the end. As in the v1 controller, an
//! allowing exception must cover everything that is asked for, while a denying one needs to touch any of it.

use super::device_rules::{DeviceAccess, MKNOD, READ, WRITE};

/// `struct bpf_cgroup_dev_ctx`: what register 1 points to.
const CTX_ACCESS_TYPE: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;
/// `BPF_DEVCG_DEV_*`, in the low half of access_type; the access is in the high half.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

// Codes of linux/bpf.h: a 32-bit load, 32-bit arithmetic, 32-bit jumps (in the kernel since 5.1), exit.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
/// The context is not needed any more once its fields are loaded.
const SCRATCH: u8 = CONTEXT;

/// `struct bpf_insn`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn new(code: u8, destination: u8) -> Self {
        Self { code, destination, source: 0, offset: 0, immediate: 0 }
    }

    fn source(self, source: u8) -> Self {
        Self { source, ..self }
    }

    fn offset(self, offset: i16) -> Self {
        Self { offset, ..self }
    }

    fn immediate(self, immediate: i32) -> Self {
        Self { immediate, ..self }
    }
}

/// Assembles the program; one for rules that forbid nothing allows everything.
pub(super) fn assemble(access: &DeviceAccess) -> Vec<u8> {
    let load = |register, offset| Instruction::new(LOAD, register).source(CONTEXT).offset(offset);
    let mut program = vec![
        load(KIND, CTX_ACCESS_TYPE),
        Instruction::new(MOVE_REGISTER, ACCESS).source(KIND),
        Instruction::new(AND, KIND).immediate(0xffff),
        Instruction::new(SHIFT_RIGHT, ACCESS).immediate(16),
        load(MAJOR, CTX_MAJOR),
        load(MINOR, CTX_MINOR),
    ];
    for (which, bits) in &access.exceptions {
        let kind = if which.block { TYPE_BLOCK } else { TYPE_CHAR };
        let mut block = vec![Instruction::new(JUMP_NOT_EQUAL, KIND).immediate(kind)];
        for (register, number) in [(MAJOR, which.major), (MINOR, which.minor)] {
            // The same 32 bits; the comparison is of 32 bits too.
            block.extend(number.map(|it| Instruction::new(JUMP_NOT_EQUAL, register).immediate(it.cast_signed())));
        }
        let (mask, leave) =
            if access.allowed { (*bits, JUMP_EQUAL) } else { (!*bits & (MKNOD | READ | WRITE), JUMP_NOT_EQUAL) };
        if access.allowed || mask != 0 {
            block.push(Instruction::new(MOVE_REGISTER, SCRATCH).source(ACCESS));
            block.push(Instruction::new(AND, SCRATCH).immediate(mask.into()));
            block.push(Instruction::new(leave, SCRATCH));
        }
        block.extend(result(!access.allowed));
        leave_to_the_end(&mut block);
        program.append(&mut block);
    }
    program.extend(result(access.allowed));
    program.iter().flat_map(bytes).collect()
}

fn result(allow: bool) -> [Instruction; 2] {
    [Instruction::new(MOVE, RESULT).immediate(allow.into()), Instruction::new(EXIT, 0)]
}

/// Points every jump of a block behind it.
fn leave_to_the_end(block: &mut [Instruction]) {
    let length = block.len();
    for (place, instruction) in block.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_EQUAL | JUMP_NOT_EQUAL) {
            instruction.offset = i16::try_from(length - place - 1).expect("a block has at most eight instructions");
        }
    }
}

fn bytes(instruction: &Instruction) -> [u8; 8] {
    let [offset_low, offset_high] = instruction.offset.to_ne_bytes();
    let [a, b, c, d] = instruction.immediate.to_ne_bytes();
    [instruction.code, instruction.source << 4 | instruction.destination, offset_low, offset_high, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::super::device_rules::tests::rules;
    use super::*;
    use proptest::prelude::*;

    /// Runs the program as the kernel would, with its own decoding of the bytes.
    fn run(program: &[u8], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u32; 11];
        let mut at = 0;
        loop {
            let raw: [u8; 8] = program[at * 8..at * 8 + 8].try_into().unwrap();
            let (to, from) = (usize::from(raw[1] & 15), usize::from(raw[1] >> 4));
            let offset = i16::from_le_bytes([raw[2], raw[3]]);
            let value = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
            at += 1;
            match raw[0] {
                0x61 => registers[to] = context[usize::try_from(offset / 4).unwrap()],
                0xb4 => registers[to] = value,
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0x16 if registers[to] == value => at += usize::try_from(offset).unwrap(),
                0x56 if registers[to] != value => at += usize::try_from(offset).unwrap(),
                0x16 | 0x56 => {}
                0x95 => return registers[0] == 1,
                other => panic!("code {other:#x}"),
            }
        }
    }

    /// What the v1 controller decides (security/device_cgroup.c): allowing exceptions cover, denying ones touch.
    fn expected(access: &DeviceAccess, block: bool, asked: u8, major: u32, minor: u32) -> bool {
        let mut matching = access.exceptions.iter().filter(|(which, _)| {
            which.block == block && which.major.is_none_or(|it| it == major) && which.minor.is_none_or(|it| it == minor)
        });
        if access.allowed {
            !matching.any(|(_, bits)| bits & asked != 0)
        } else {
            matching.any(|(_, bits)| asked & !bits == 0)
        }
    }

    fn number() -> impl Strategy<Value = String> {
        prop_oneof![Just("*".to_owned()), (0_u32..4).prop_map(|it| it.to_string()), Just(u32::MAX.to_string())]
    }

    fn rule_line() -> impl Strategy<Value = String> {
        let access = prop_oneof![Just("r"), Just("w"), Just("m"), Just("rw"), Just("rwm")];
        prop_oneof![
            1 => prop_oneof![Just("allow a".to_owned()), Just("deny a".to_owned())],
            4 => (any::<bool>(), any::<bool>(), number(), number(), access).prop_map(|(allow, block, major, minor, access)| {
                let (allow, kind) = (if allow { "allow" } else { "deny" }, if block { 'b' } else { 'c' });
                format!("{allow} {kind} {major}:{minor} {access}")
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_do(lines in proptest::collection::vec(rule_line(), 0..8)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            // Rules that punch holes are refused; that is another test's matter.
            if let Ok(access) = DeviceAccess::from_rules(&rules(&lines)) {
                let program = assemble(&access);
                for (block, asked, major, minor) in combinations(&[0, 1, 3, 5, 136, u32::MAX]) {
                    let kind = if block { 1 } else { 2 };
                    prop_assert_eq!(
                        run(&program, kind, asked.into(), major, minor),
                        expected(&access, block, asked, major, minor),
                        "{} {} {}:{}", block, asked, major, minor
                    );
                }
            }
        }
    }

    /// Every combination of kind, access and the given numbers.
    fn combinations(numbers: &[u32]) -> Vec<(bool, u8, u32, u32)> {
        let mut all = Vec::new();
        for block in [false, true] {
            for asked in 1..8 {
                for major in numbers {
                    all.extend(numbers.iter().map(|minor| (block, asked, *major, *minor)));
                }
            }
        }
        all
    }

    #[test]
    fn everything_is_allowed_by_one_answer() {
        let program = assemble(&DeviceAccess::from_rules(&rules(&["allow a"])).unwrap());
        assert!(run(&program, 2, 7, 1, 2) && run(&program, 1, 7, 8, 0));
    }
}
