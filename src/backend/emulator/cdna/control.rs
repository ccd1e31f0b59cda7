//! Program control: branches, calls, barriers, the MODE register.

use super::decode::Op;
use super::micro::{Handler, Micro, Step, Trap};
use super::shared::{IMAGE, Shared};
use super::waits;
use super::wave::{Mode, State, VCC, Wave};

/// The function of an instruction of program control, if it is one.
pub(super) fn handler(op: Op) -> Option<Handler> {
    Some(match op {
        // Independent of time: no-operations, priorities, caches that the emulator does not have. The states that hardware
        // needs between dependent instructions are not modelled, so a missing s_nop is not found.
        Op::s_nop
        | Op::s_setprio
        | Op::s_wakeup
        | Op::s_icache_inv
        | Op::s_dcache_inv
        | Op::s_dcache_wb
        | Op::s_dcache_inv_vol
        | Op::s_dcache_wb_vol
        | Op::wbl2
        | Op::wbinvl1
        | Op::wbinvl1_vol
        | Op::invl2
        | Op::inv => nothing,
        Op::s_sleep => rest,
        Op::s_waitcnt => waits::wait,
        Op::s_endpgm => end,
        Op::s_barrier => barrier,
        Op::s_trap => trap,
        Op::s_branch => branch,
        Op::s_cbranch_scc0 => branch_scc::<false>,
        Op::s_cbranch_scc1 => branch_scc::<true>,
        Op::s_cbranch_vccz => branch_vcc::<true>,
        Op::s_cbranch_vccnz => branch_vcc::<false>,
        Op::s_cbranch_execz => branch_exec::<true>,
        Op::s_cbranch_execnz => branch_exec::<false>,
        Op::s_getpc_b64 => get_pc,
        Op::s_setpc_b64 => set_pc,
        Op::s_swappc_b64 => swap_pc,
        Op::s_call_b64 => call,
        Op::s_getreg_b32 => get_register,
        Op::s_setreg_b32 | Op::s_setreg_imm32_b32 => set_register,
        _ => return None,
    })
}

fn nothing(_: &mut Wave, _: &Micro, _: &mut Shared<'_>) -> Step {
    Ok(())
}

/// What a wave does that waits for another in a loop.
fn rest(w: &mut Wave, _: &Micro, _: &mut Shared<'_>) -> Step {
    w.state = State::Resting;
    Ok(())
}

fn end(w: &mut Wave, _: &Micro, sh: &mut Shared<'_>) -> Step {
    waits::drain_all(w, sh)?;
    w.state = State::Done;
    Ok(())
}

fn barrier(w: &mut Wave, _: &Micro, _: &mut Shared<'_>) -> Step {
    w.state = State::AtBarrier;
    Ok(())
}

fn trap(_: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    Err(Trap::new(format!("the kernel stopped itself with s_trap {}", m.imm)))
}

fn branch(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    w.pc = m.imm as usize;
    Ok(())
}

fn branch_scc<const ON: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    if w.scc == ON {
        w.pc = m.imm as usize;
    }
    Ok(())
}

fn branch_vcc<const ON_ZERO: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    if (w.pair(VCC) == 0) == ON_ZERO {
        w.pc = m.imm as usize;
    }
    Ok(())
}

fn branch_exec<const ON_ZERO: bool>(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    if (w.exec() == 0) == ON_ZERO {
        w.pc = m.imm as usize;
    }
    Ok(())
}

/// The address of the instruction after the one that is executed.
fn following(sh: &Shared<'_>) -> u64 {
    IMAGE + sh.program.following(sh.at)
}

fn jump(w: &mut Wave, sh: &Shared<'_>, address: u64) -> Step {
    match sh.program.index_of(address.wrapping_sub(IMAGE)) {
        Some(index) => {
            w.pc = index;
            Ok(())
        }
        None => Err(Trap::new(format!("address {address:#x} is no instruction of the module"))),
    }
}

fn get_pc(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    w.set_pair(usize::from(m.dst), following(sh));
    Ok(())
}

fn set_pc(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let to = w.scalar64(m.src[0]);
    jump(w, sh, to)
}

fn swap_pc(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let to = w.scalar64(m.src[0]);
    w.set_pair(usize::from(m.dst), following(sh));
    jump(w, sh, to)
}

fn call(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    w.set_pair(usize::from(m.dst), following(sh));
    w.pc = m.imm as usize;
    Ok(())
}

/// Number, first bit and mask of the hardware register field in an immediate.
fn field(imm: i32) -> (u32, u32, u32) {
    let imm = imm as u32;
    let width = (imm >> 11 & 31) + 1;
    (imm & 63, imm >> 6 & 31, u32::MAX >> (32 - width))
}

const MODE: u32 = 1;
/// Trap status: nothing has happened.
const TRAP_STATUS: u32 = 3;
/// Where the wave runs; every answer is right, so zero is given.
const PLACES: [u32; 2] = [4, 20];
/// The windows of flat addresses.
const WINDOWS: u32 = 15;

fn get_register(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (register, shift, mask) = field(m.imm);
    let value = match register {
        MODE => w.mode.bits,
        TRAP_STATUS => 0,
        WINDOWS => super::shared::PRIVATE_WINDOW >> 16 | super::shared::SHARED_WINDOW & 0xffff_0000,
        r if PLACES.contains(&r) => 0,
        r => return Err(Trap::new(format!("hardware register {r} is not known"))),
    };
    w.s[usize::from(m.dst) & 127] = value >> shift & mask;
    Ok(())
}

fn set_register(w: &mut Wave, m: &Micro, _: &mut Shared<'_>) -> Step {
    let (register, shift, mask) = field(m.imm);
    let value = w.scalar(m.src[0]);
    match register {
        MODE => {
            let bits = w.mode.bits & !(mask << shift) | (value & mask) << shift;
            w.mode = Mode::new(bits);
            Ok(())
        }
        TRAP_STATUS => Ok(()),
        r => Err(Trap::new(format!("hardware register {r} cannot be written"))),
    }
}
