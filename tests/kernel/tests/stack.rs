//! What old kernels ask of programs, whichever kernel runs this test: that calls fit the stack as kernels before 6.8 count
//! it, and that loops go back by jumps.
//!
//! Those round each function's part up to 32 bytes (`check_max_stack_depth` in kernel/bpf/verifier.c), and refuse a
//! chain of calls with more than 512. What a function uses is what it addresses from the frame pointer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use coil_agent::datapath::OBJECT;

const STACK: usize = 512;
const ROUND: usize = 32;
/// Sections of symbols and of relocations, symbols of functions and of sections (`elf.h`).
const SYMTAB: u32 = 2;
const REL: u32 = 9;
const FUNC: u8 = 2;
const SECTION: u8 = 3;

/// Where a function begins: its section, and its offset there.
type Place = (usize, usize);

fn word<const N: usize>(at: usize) -> Result<[u8; N]> {
    OBJECT.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).context("the object ends early")
}

fn u16(at: usize) -> Result<usize> {
    Ok(usize::from(u16::from_le_bytes(word(at)?)))
}

fn u64(at: usize) -> Result<usize> {
    Ok(usize::try_from(u64::from_le_bytes(word(at)?))?)
}

struct Section {
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
    info: usize,
}

struct Symbol {
    name: String,
    kind: u8,
    place: Place,
    size: usize,
}

fn sections() -> Result<Vec<Section>> {
    let (table, each, number) = (u64(0x28)?, u16(0x3a)?, u16(0x3c)?);
    let one = |at: usize| -> Result<Section> {
        Ok(Section {
            kind: u32::from_le_bytes(word(at + 4)?),
            offset: u64(at + 24)?,
            size: u64(at + 32)?,
            link: u32::from_le_bytes(word(at + 40)?) as usize,
            info: u32::from_le_bytes(word(at + 44)?) as usize,
        })
    };
    (0..number).map(|n| one(table + n * each)).collect()
}

fn symbols(sections: &[Section]) -> Result<Vec<Symbol>> {
    let table = sections.iter().find(|section| section.kind == SYMTAB).context("no symbols")?;
    let names = sections.get(table.link).context("no names")?.offset;
    let one = |at: usize| -> Result<Symbol> {
        let name = names + u32::from_le_bytes(word(at)?) as usize;
        let name = OBJECT.get(name..).context("a name")?.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Symbol {
            name: String::from_utf8_lossy(name).into_owned(),
            kind: word::<1>(at + 4)?[0] & 15,
            place: (u16(at + 6)?, u64(at + 8)?),
            size: u64(at + 16)?,
        })
    };
    (0..table.size / 24).map(|n| one(table.offset + n * 24)).collect()
}

/// One instruction.
struct Insn {
    op: u8,
    dst: u8,
    src: u8,
    offset: i16,
    imm: i32,
}

fn insn(at: usize) -> Result<Insn> {
    let [op, registers, a, b, c, d, e, f] = word(at)?;
    Ok(Insn {
        op,
        dst: registers & 15,
        src: registers >> 4,
        offset: i16::from_le_bytes([a, b]),
        imm: i32::from_le_bytes([c, d, e, f]),
    })
}

/// A function: the bytes of stack it uses, and what it calls.
struct Function {
    name: String,
    uses: usize,
    calls: BTreeSet<Place>,
}

fn functions() -> Result<BTreeMap<Place, Function>> {
    let sections = sections()?;
    let symbols = symbols(&sections)?;
    // By section and offset: the symbol that an instruction is about.
    let mut relocated = BTreeMap::new();
    for section in sections.iter().filter(|section| section.kind == REL) {
        for at in (section.offset..section.offset + section.size).step_by(16) {
            relocated.insert((section.info, u64(at)?), u64(at + 8)? >> 32);
        }
    }
    let mut functions = BTreeMap::new();
    for symbol in symbols.iter().filter(|symbol| symbol.kind == FUNC) {
        let (section, start) = symbol.place;
        let base = sections.get(section).context("a function's section")?.offset;
        let mut function = Function { name: symbol.name.clone(), uses: 0, calls: BTreeSet::new() };
        let mut copy = None;
        for offset in (start..start + symbol.size).step_by(8) {
            let Insn { op, dst, src, offset: field, imm } = insn(base + offset)?;
            let used = match op & 7 {
                // Loads from, and stores to, the frame.
                1 if src == 10 => -i32::from(field),
                2 | 3 if dst == 10 => -i32::from(field),
                // A pointer into it: the frame pointer is copied, then moved.
                _ if op == 0x07 && copy == Some(dst) => -imm,
                _ => 0,
            };
            function.uses = function.uses.max(usize::try_from(used).unwrap_or(0));
            copy = (op == 0xbf && src == 10).then_some(dst);
            // A call of a function of the object.
            if op == 0x85 && src == 1 {
                let ahead = |from: usize| {
                    usize::try_from(i64::try_from(from)? + 8 * i64::from(imm)).map_err(anyhow::Error::from)
                };
                let target = match relocated.get(&(section, offset)).and_then(|number| symbols.get(*number)) {
                    Some(target) if target.kind == SECTION => (target.place.0, ahead(8)?),
                    Some(target) => target.place,
                    None => (section, ahead(offset + 8)?),
                };
                function.calls.insert(target);
            }
        }
        functions.insert(symbol.place, function);
    }
    Ok(functions)
}

/// The chain of calls from a function that uses most, with what it uses.
fn deepest(functions: &BTreeMap<Place, Function>, from: Place) -> Result<(usize, Vec<String>)> {
    let function = functions.get(&from).context("a call to nothing")?;
    let mut deepest = (0, vec![]);
    for call in &function.calls {
        deepest = deepest.max(self::deepest(functions, *call)?);
    }
    let own = function.uses.max(1).next_multiple_of(ROUND);
    let mut chain = vec![format!("{} ({})", function.name, function.uses)];
    chain.extend(deepest.1);
    Ok((deepest.0 + own, chain))
}

#[test]
fn calls_fit_the_stack_of_old_kernels() -> Result<()> {
    let functions = functions()?;
    for program in ["from_pod", "from_net", "to_pod", "to_net"] {
        let found = functions.iter().find(|(_, function)| function.name == program);
        let (place, _) = found.with_context(|| format!("no program {program}"))?;
        let (uses, chain) = deepest(&functions, *place)?;
        ensure!(uses > ROUND, "{program} uses {uses} bytes only: this test is blind");
        ensure!(
            uses <= STACK,
            "{program}: {uses} bytes of stack, {STACK} are to be had:\n  {}",
            chain.join("\n  ")
        );
    }
    Ok(())
}

/// Bits of a visit, and the edges of an instruction (`check_cfg` in kernel/bpf/verifier.c of Linux 6.1).
const DISCOVERED: u8 = 0x10;
const EXPLORED: u8 = 0x20;
const FALLTHROUGH: u8 = 1;
const BRANCH: u8 = 2;

/// A walk over the instructions of one function, as the verifier goes.
struct Flow {
    state: Vec<u8>,
    way: Vec<usize>,
}

impl Flow {
    /// Follows an edge; true when it leads to something new. Only jumps may go back.
    fn follow(&mut self, from: usize, to: usize, edge: u8, is_jump: bool) -> Result<bool> {
        if self.state[from] >= DISCOVERED | edge {
            return Ok(false);
        }
        match self
            .state
            .get(to)
            .copied()
            .with_context(|| format!("instruction {from} leads out of its function"))?
        {
            0 => {
                self.state[from] = DISCOVERED | edge;
                self.state[to] = DISCOVERED;
                self.way.push(to);
                Ok(true)
            }
            EXPLORED => {
                self.state[from] = DISCOVERED | edge;
                Ok(false)
            }
            _ => {
                ensure!(is_jump, "back-edge from instruction {from} to {to}");
                Ok(false)
            }
        }
    }

    fn visit(&mut self, at: usize, insn: &Insn) -> Result<bool> {
        let target = |field: i16| usize::try_from(i64::try_from(at)? + 1 + i64::from(field));
        match insn.op {
            0x95 => Ok(false),
            0x05 => self.follow(at, target(insn.offset)?, FALLTHROUGH, true),
            // A call comes back; what it calls is a walk of its own.
            op if op == 0x85 || !matches!(op & 7, 5 | 6) => self.follow(at, at + 1, FALLTHROUGH, false),
            _ => Ok(self.follow(at, at + 1, FALLTHROUGH, true)?
                || self.follow(at, target(insn.offset)?, BRANCH, true)?),
        }
    }
}

#[test]
fn loops_go_back_by_jumps() -> Result<()> {
    let sections = sections()?;
    let mut loops = 0;
    for symbol in symbols(&sections)?.iter().filter(|symbol| symbol.kind == FUNC) {
        let (section, start) = symbol.place;
        let base = sections.get(section).context("a function's section")?.offset + start;
        let mut flow = Flow { state: vec![0; symbol.size / 8], way: vec![0] };
        flow.state[0] = DISCOVERED;
        while let Some(at) = flow.way.last().copied() {
            let insn = insn(base + at * 8)?;
            loops += usize::from(matches!(insn.op & 7, 5 | 6) && insn.op != 0x85 && insn.offset < 0);
            if !flow.visit(at, &insn).with_context(|| symbol.name.clone())? {
                flow.state[at] = EXPLORED;
                flow.way.pop();
            }
        }
    }
    ensure!(loops > 0, "there are no loops: this test is blind");
    Ok(())
}
