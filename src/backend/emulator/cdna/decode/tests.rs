//! The decoder against LLVM's text.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// One encoding of every mnemonic: target, words, text.
fn golden() -> Vec<(Target, Vec<u32>, &'static str)> {
    let mut out = Vec::new();
    for line in include_str!("../../../../../tests/golden/cdna/encodings.txt").lines().filter(|l| !l.starts_with('#')) {
        let (target, rest) = line.split_once(": ").unwrap();
        let (words, text) = rest.split_once(" = ").unwrap();
        let words: Vec<u32> = words.split(' ').map(|w| u32::from_str_radix(w, 16).unwrap()).collect();
        for (name, target_) in [("gfx90a", Target::Gfx90a), ("gfx942", Target::Gfx942)] {
            if target == name || target == "both" {
                out.push((target_, words.clone(), text));
            }
        }
    }
    out
}

#[test]
fn every_mnemonic_reads_as_llvm_prints_it() {
    let golden = golden();
    assert!(golden.len() > 2500, "{}", golden.len());
    let mut wrong = Vec::new();
    for (target, words, text) in golden {
        match decode(target, 0, &words) {
            Ok(i) if i.to_string() == text && usize::from(i.size) == words.len() * 4 => {}
            Ok(i) => wrong.push(format!("{target:?} {words:08x?}: expected `{text}`, found `{i}` of {} bytes", i.size)),
            Err(e) => wrong.push(format!("{target:?} {words:08x?}: expected `{text}`: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs llvm-mc-19: see ci/install"]
fn llvm_mc_prints_the_golden_texts() {
    for (target, cpu) in [(Target::Gfx90a, "gfx90a"), (Target::Gfx942, "gfx942")] {
        let golden: Vec<_> = golden().into_iter().filter(|(t, ..)| *t == target).collect();
        let arguments = ["--disassemble", "-triple=amdgcn-amd-amdhsa", &format!("-mcpu={cpu}")];
        let child = Command::new("llvm-mc-19")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.map_err(|e| format!("llvm-mc-19: {e}; ci/install brings it")).unwrap();
        let bytes: Vec<String> = golden
            .iter()
            .map(|(_, words, _)| {
                let bytes = words.iter().flat_map(|w| w.to_le_bytes());
                bytes.map(|b| format!("{b:#04x}")).collect::<Vec<_>>().join(" ")
            })
            .collect();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all((bytes.join("\n") + "\n").as_bytes()).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        // The assembler indents, aligns and comments.
        let lines = output.lines().map(|l| l.split("//").next().unwrap_or_default().trim());
        let lines: Vec<String> = lines
            .filter(|l| !l.is_empty() && !l.starts_with('.'))
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected: Vec<&str> = golden.iter().map(|(.., text)| *text).collect();
        assert_eq!(lines, expected, "{cpu}");
    }
}

#[test]
fn an_unknown_encoding_names_address_and_words() {
    let error = decode(Target::Gfx90a, 0x1540, &[0xf000_0f00, 0x0001_0804]).unwrap_err().to_string();
    assert_eq!(error, "gfx90a: instruction f0000f00 at 0x1540: unknown encoding");
    let error = decode(Target::Gfx90a, 8, &[0xd3ff_0004, 0x0582_8120]).unwrap_err().to_string();
    assert_eq!(error, "gfx90a: instruction d3ff0004 05828120 at 0x8: unknown opcode 0x7f of Vop3p");
    let error = decode(Target::Gfx942, 8, &[0xd1cb_0104]).unwrap_err().to_string();
    assert_eq!(error, "gfx942: instruction d1cb0104 at 0x8: ends before the instruction does");
}

#[test]
fn branches_count_words_from_the_next_instruction() {
    let back = decode(Target::Gfx942, 0x100, &[0xbf85_fff3]).unwrap();
    assert_eq!((back.op, back.branch()), (Op::s_cbranch_scc1, Some(0x104 - 13 * 4)));
    assert_eq!(decode(Target::Gfx942, 0x100, &[0xbf8a_0000]).unwrap().branch(), None);
}

#[test]
fn constants_have_the_width_of_their_operand() {
    let constant = |words: &[u32], at: usize| match decode(Target::Gfx942, 0, words).unwrap().src[at] {
        Operand::Constant { bits, .. } => bits,
        other => panic!("{other:?}"),
    };
    // v_add_f32 and v_add_f16 of 1.0, v_rcp_f64 of -4.0, of a literal; s_mov_b64 of -1 and of a literal.
    assert_eq!(constant(&[0x0200_00f2], 0), 0x3f80_0000);
    assert_eq!(constant(&[0x3e00_00f2], 0), 0x3c00);
    assert_eq!(constant(&[0x7e00_4af7], 0), 0xc010_0000_0000_0000);
    assert_eq!(constant(&[0x7e00_4aff, 0x4024_0000], 0), 0x4024_0000_0000_0000);
    assert_eq!(constant(&[0xbe84_01c1], 0), u64::MAX);
    assert_eq!(constant(&[0xbe84_01ff, 0xffff_0000], 0), 0xffff_0000);
    assert_eq!(constant(&[0xbe84_00c1], 0), 0xffff_ffff);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_words_decode_or_are_refused(words in proptest::collection::vec(any::<u32>(), 0..4), is_new in any::<bool>()) {
        let target = if is_new { Target::Gfx942 } else { Target::Gfx90a };
        if let Ok(instruction) = decode(target, u64::MAX - 3, &words) {
            prop_assert!(usize::from(instruction.size) <= words.len() * 4 && instruction.size > 0);
            prop_assert!(!instruction.to_string().is_empty());
        }
    }
}
