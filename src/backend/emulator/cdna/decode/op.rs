//! The table of opcodes: for every format, code, name and shape.
//!
//! A shape has a letter an operand: the result, `c` for a scalar pair that is a second result, then the sources.
//! `w` 32 bits, `h` 16 bits in a register, `p` two of 16 bits, `d` 64 bits, `q` two f32, digits and `g` (16), `x` (32) as many
//! registers, `s` a scalar register, `m` a scalar pair as mask, `-` none. For loads and stores: result, data.
//! `@` names the only target that has the row; `= "name"` is how gfx90a spells it.

use super::{Format, Target};

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) format: Format,
    pub(super) code: u16,
    pub(super) op: Op,
    pub(super) shape: &'static str,
    /// The only target that has it.
    pub(super) only: Option<Target>,
    /// The spelling on gfx90a, where it is another.
    pub(super) old: Option<&'static str>,
}

macro_rules! only {
    (gfx90a) => {
        Some(Target::Gfx90a)
    };
    (gfx942) => {
        Some(Target::Gfx942)
    };
    () => {
        None
    };
}

macro_rules! old {
    ($name:literal) => {
        Some($name)
    };
    () => {
        None
    };
}

/// Makes the operations and the table of one text. Rows under `again` have names that are defined above.
macro_rules! isa {
    (
        define { $($format:ident { $($code:literal $name:ident $shape:literal $(@ $only:ident)? $(= $old:literal)?;)* })* }
        again { $($format2:ident { $($code2:literal $name2:ident $shape2:literal $(@ $only2:ident)? $(= $old2:literal)?;)* })* }
    ) => {
        /// What an instruction does, by the name in AMD's manual, without the suffix of the encoding; matrix operations by
        /// gfx942's spelling; memory operations without the prefix of the space (`load_dword` for `global_load_dword` and
        /// `buffer_load_dword`), comparisons in one (see [`super::Compare`]).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, reason = "the manual's names, so that a search finds them in both")]
        #[repr(u16)]
        pub enum Op {
            /// A vector comparison into a scalar pair.
            v_cmp,
            /// The same, and EXEC becomes the result.
            v_cmpx,
            /// Whether a float is of the classes in a mask.
            v_cmp_class,
            /// The same, and EXEC becomes the result.
            v_cmpx_class,
            $($(#[doc = concat!("`", stringify!($name), "`")] $name,)*)*
        }

        impl Op {
            /// Its name as in the variant.
            pub fn name(self) -> &'static str {
                match self {
                    Op::v_cmp => "v_cmp",
                    Op::v_cmpx => "v_cmpx",
                    Op::v_cmp_class => "v_cmp_class",
                    Op::v_cmpx_class => "v_cmpx_class",
                    $($(Op::$name => stringify!($name),)*)*
                }
            }
        }

        pub(super) static ROWS: &[Row] = &[
            $($(Row {
                format: Format::$format,
                code: $code,
                op: Op::$name,
                shape: $shape,
                only: only!($($only)?),
                old: old!($($old)?),
            },)*)*
            $($(Row {
                format: Format::$format2,
                code: $code2,
                op: Op::$name2,
                shape: $shape2,
                only: only!($($only2)?),
                old: old!($($old2)?),
            },)*)*
        ];
    };
}

isa! {
    define {
    Sop2 {
        0x00 s_add_u32 "www"; 0x01 s_sub_u32 "www"; 0x02 s_add_i32 "www"; 0x03 s_sub_i32 "www"; 0x04 s_addc_u32 "www";
        0x05 s_subb_u32 "www"; 0x06 s_min_i32 "www"; 0x07 s_min_u32 "www"; 0x08 s_max_i32 "www"; 0x09 s_max_u32 "www";
        0x0a s_cselect_b32 "www"; 0x0b s_cselect_b64 "ddd"; 0x0c s_and_b32 "www"; 0x0d s_and_b64 "ddd";
        0x0e s_or_b32 "www"; 0x0f s_or_b64 "ddd"; 0x10 s_xor_b32 "www"; 0x11 s_xor_b64 "ddd"; 0x12 s_andn2_b32 "www";
        0x13 s_andn2_b64 "ddd"; 0x14 s_orn2_b32 "www"; 0x15 s_orn2_b64 "ddd"; 0x16 s_nand_b32 "www";
        0x17 s_nand_b64 "ddd"; 0x18 s_nor_b32 "www"; 0x19 s_nor_b64 "ddd"; 0x1a s_xnor_b32 "www";
        0x1b s_xnor_b64 "ddd"; 0x1c s_lshl_b32 "www"; 0x1d s_lshl_b64 "ddw"; 0x1e s_lshr_b32 "www";
        0x1f s_lshr_b64 "ddw"; 0x20 s_ashr_i32 "www"; 0x21 s_ashr_i64 "ddw"; 0x22 s_bfm_b32 "www";
        0x23 s_bfm_b64 "dww"; 0x24 s_mul_i32 "www"; 0x25 s_bfe_u32 "www"; 0x26 s_bfe_i32 "www"; 0x27 s_bfe_u64 "ddw";
        0x28 s_bfe_i64 "ddw"; 0x2a s_absdiff_i32 "www"; 0x2c s_mul_hi_u32 "www"; 0x2d s_mul_hi_i32 "www";
        0x2e s_lshl1_add_u32 "www"; 0x2f s_lshl2_add_u32 "www"; 0x30 s_lshl3_add_u32 "www";
        0x31 s_lshl4_add_u32 "www"; 0x32 s_pack_ll_b32_b16 "www"; 0x33 s_pack_lh_b32_b16 "www";
        0x34 s_pack_hh_b32_b16 "www";
    }
    Sop1 {
        0x00 s_mov_b32 "ww"; 0x01 s_mov_b64 "dd"; 0x02 s_cmov_b32 "ww"; 0x03 s_cmov_b64 "dd"; 0x04 s_not_b32 "ww";
        0x05 s_not_b64 "dd"; 0x06 s_wqm_b32 "ww"; 0x07 s_wqm_b64 "dd"; 0x08 s_brev_b32 "ww"; 0x09 s_brev_b64 "dd";
        0x0a s_bcnt0_i32_b32 "ww"; 0x0b s_bcnt0_i32_b64 "wd"; 0x0c s_bcnt1_i32_b32 "ww"; 0x0d s_bcnt1_i32_b64 "wd";
        0x0e s_ff0_i32_b32 "ww"; 0x0f s_ff0_i32_b64 "wd"; 0x10 s_ff1_i32_b32 "ww"; 0x11 s_ff1_i32_b64 "wd";
        0x12 s_flbit_i32_b32 "ww"; 0x13 s_flbit_i32_b64 "wd"; 0x14 s_flbit_i32 "ww"; 0x15 s_flbit_i32_i64 "wd";
        0x16 s_sext_i32_i8 "ww"; 0x17 s_sext_i32_i16 "ww"; 0x18 s_bitset0_b32 "ww"; 0x19 s_bitset0_b64 "dw";
        0x1a s_bitset1_b32 "ww"; 0x1b s_bitset1_b64 "dw"; 0x1c s_getpc_b64 "d"; 0x1d s_setpc_b64 "-d";
        0x1e s_swappc_b64 "dd"; 0x20 s_and_saveexec_b64 "dd"; 0x21 s_or_saveexec_b64 "dd";
        0x22 s_xor_saveexec_b64 "dd"; 0x23 s_andn2_saveexec_b64 "dd"; 0x24 s_orn2_saveexec_b64 "dd";
        0x25 s_nand_saveexec_b64 "dd"; 0x26 s_nor_saveexec_b64 "dd"; 0x27 s_xnor_saveexec_b64 "dd";
        0x28 s_quadmask_b32 "ww"; 0x29 s_quadmask_b64 "dd"; 0x30 s_abs_i32 "ww"; 0x33 s_andn1_saveexec_b64 "dd";
        0x34 s_orn1_saveexec_b64 "dd"; 0x35 s_andn1_wrexec_b64 "dd"; 0x36 s_andn2_wrexec_b64 "dd";
        0x37 s_bitreplicate_b64_b32 "dw";
    }
    Sopc {
        0x00 s_cmp_eq_i32 "-ww"; 0x01 s_cmp_lg_i32 "-ww"; 0x02 s_cmp_gt_i32 "-ww"; 0x03 s_cmp_ge_i32 "-ww";
        0x04 s_cmp_lt_i32 "-ww"; 0x05 s_cmp_le_i32 "-ww"; 0x06 s_cmp_eq_u32 "-ww"; 0x07 s_cmp_lg_u32 "-ww";
        0x08 s_cmp_gt_u32 "-ww"; 0x09 s_cmp_ge_u32 "-ww"; 0x0a s_cmp_lt_u32 "-ww"; 0x0b s_cmp_le_u32 "-ww";
        0x0c s_bitcmp0_b32 "-ww"; 0x0d s_bitcmp1_b32 "-ww"; 0x0e s_bitcmp0_b64 "-dw"; 0x0f s_bitcmp1_b64 "-dw";
        0x12 s_cmp_eq_u64 "-dd"; 0x13 s_cmp_lg_u64 "-dd";
    }
    Sopk {
        0x00 s_movk_i32 "w"; 0x01 s_cmovk_i32 "w"; 0x02 s_cmpk_eq_i32 "-w"; 0x03 s_cmpk_lg_i32 "-w";
        0x04 s_cmpk_gt_i32 "-w"; 0x05 s_cmpk_ge_i32 "-w"; 0x06 s_cmpk_lt_i32 "-w"; 0x07 s_cmpk_le_i32 "-w";
        0x08 s_cmpk_eq_u32 "-w"; 0x09 s_cmpk_lg_u32 "-w"; 0x0a s_cmpk_gt_u32 "-w"; 0x0b s_cmpk_ge_u32 "-w";
        0x0c s_cmpk_lt_u32 "-w"; 0x0d s_cmpk_le_u32 "-w"; 0x0e s_addk_i32 "w"; 0x0f s_mulk_i32 "w";
        0x11 s_getreg_b32 "w"; 0x12 s_setreg_b32 "-w"; 0x14 s_setreg_imm32_b32 "--"; 0x15 s_call_b64 "d";
    }
    Sopp {
        0x00 s_nop ""; 0x01 s_endpgm ""; 0x02 s_branch ""; 0x03 s_wakeup ""; 0x04 s_cbranch_scc0 "";
        0x05 s_cbranch_scc1 ""; 0x06 s_cbranch_vccz ""; 0x07 s_cbranch_vccnz ""; 0x08 s_cbranch_execz "";
        0x09 s_cbranch_execnz ""; 0x0a s_barrier ""; 0x0b s_setkill ""; 0x0c s_waitcnt ""; 0x0d s_sethalt "";
        0x0e s_sleep ""; 0x0f s_setprio ""; 0x10 s_sendmsg ""; 0x11 s_sendmsghalt ""; 0x12 s_trap "";
        0x13 s_icache_inv "";
    }
    Smem {
        0x00 s_load_dword "wd"; 0x01 s_load_dwordx2 "dd"; 0x02 s_load_dwordx4 "4d"; 0x03 s_load_dwordx8 "8d";
        0x04 s_load_dwordx16 "gd"; 0x08 s_buffer_load_dword "w4"; 0x09 s_buffer_load_dwordx2 "d4";
        0x0a s_buffer_load_dwordx4 "44"; 0x0b s_buffer_load_dwordx8 "84"; 0x0c s_buffer_load_dwordx16 "g4";
        0x20 s_dcache_inv ""; 0x21 s_dcache_wb ""; 0x22 s_dcache_inv_vol ""; 0x23 s_dcache_wb_vol "";
        0x24 s_memtime "d"; 0x25 s_memrealtime "d";
    }
    Vop2 {
        0x00 v_cndmask_b32 "wwwm"; 0x01 v_add_f32 "www"; 0x02 v_sub_f32 "www"; 0x03 v_subrev_f32 "www";
        0x04 v_fmac_f64 "ddd"; 0x05 v_mul_f32 "www"; 0x06 v_mul_i32_i24 "www"; 0x07 v_mul_hi_i32_i24 "www";
        0x08 v_mul_u32_u24 "www"; 0x09 v_mul_hi_u32_u24 "www"; 0x0a v_min_f32 "www"; 0x0b v_max_f32 "www";
        0x0c v_min_i32 "www"; 0x0d v_max_i32 "www"; 0x0e v_min_u32 "www"; 0x0f v_max_u32 "www";
        0x10 v_lshrrev_b32 "www"; 0x11 v_ashrrev_i32 "www"; 0x12 v_lshlrev_b32 "www"; 0x13 v_and_b32 "www";
        0x14 v_or_b32 "www"; 0x15 v_xor_b32 "www"; 0x16 v_mac_f32 "www" @gfx90a; 0x17 v_madmk_f32 "wwww" @gfx90a;
        0x17 v_fmamk_f32 "wwww" @gfx942; 0x18 v_madak_f32 "wwww" @gfx90a; 0x18 v_fmaak_f32 "wwww" @gfx942;
        0x19 v_add_co_u32 "wcww"; 0x1a v_sub_co_u32 "wcww"; 0x1b v_subrev_co_u32 "wcww"; 0x1c v_addc_co_u32 "wcwwm";
        0x1d v_subb_co_u32 "wcwwm"; 0x1e v_subbrev_co_u32 "wcwwm"; 0x1f v_add_f16 "whh"; 0x20 v_sub_f16 "whh";
        0x21 v_subrev_f16 "whh"; 0x22 v_mul_f16 "whh"; 0x23 v_mac_f16 "whh"; 0x24 v_madmk_f16 "whhh";
        0x25 v_madak_f16 "whhh"; 0x26 v_add_u16 "whh"; 0x27 v_sub_u16 "whh"; 0x28 v_subrev_u16 "whh";
        0x29 v_mul_lo_u16 "whh"; 0x2a v_lshlrev_b16 "whh"; 0x2b v_lshrrev_b16 "whh"; 0x2c v_ashrrev_i16 "whh";
        0x2d v_max_f16 "whh"; 0x2e v_min_f16 "whh"; 0x2f v_max_u16 "whh"; 0x30 v_max_i16 "whh"; 0x31 v_min_u16 "whh";
        0x32 v_min_i16 "whh"; 0x33 v_ldexp_f16 "whh"; 0x34 v_add_u32 "www"; 0x35 v_sub_u32 "www";
        0x36 v_subrev_u32 "www"; 0x37 v_dot2c_f32_f16 "wpp"; 0x38 v_dot2c_i32_i16 "wpp"; 0x39 v_dot4c_i32_i8 "www";
        0x3a v_dot8c_i32_i4 "www"; 0x3b v_fmac_f32 "www"; 0x3c v_pk_fmac_f16 "wpp"; 0x3d v_xnor_b32 "www";
    }
    Vop1 {
        0x00 v_nop ""; 0x01 v_mov_b32 "ww"; 0x02 v_readfirstlane_b32 "sw"; 0x03 v_cvt_i32_f64 "wd";
        0x04 v_cvt_f64_i32 "dw"; 0x05 v_cvt_f32_i32 "ww"; 0x06 v_cvt_f32_u32 "ww"; 0x07 v_cvt_u32_f32 "ww";
        0x08 v_cvt_i32_f32 "ww"; 0x0a v_cvt_f16_f32 "ww"; 0x0b v_cvt_f32_f16 "wh"; 0x0c v_cvt_rpi_i32_f32 "ww";
        0x0d v_cvt_flr_i32_f32 "ww"; 0x0e v_cvt_off_f32_i4 "ww"; 0x0f v_cvt_f32_f64 "wd"; 0x10 v_cvt_f64_f32 "dw";
        0x11 v_cvt_f32_ubyte0 "ww"; 0x12 v_cvt_f32_ubyte1 "ww"; 0x13 v_cvt_f32_ubyte2 "ww";
        0x14 v_cvt_f32_ubyte3 "ww"; 0x15 v_cvt_u32_f64 "wd"; 0x16 v_cvt_f64_u32 "dw"; 0x17 v_trunc_f64 "dd";
        0x18 v_ceil_f64 "dd"; 0x19 v_rndne_f64 "dd"; 0x1a v_floor_f64 "dd"; 0x1b v_fract_f32 "ww";
        0x1c v_trunc_f32 "ww"; 0x1d v_ceil_f32 "ww"; 0x1e v_rndne_f32 "ww"; 0x1f v_floor_f32 "ww";
        0x20 v_exp_f32 "ww"; 0x21 v_log_f32 "ww"; 0x22 v_rcp_f32 "ww"; 0x23 v_rcp_iflag_f32 "ww"; 0x24 v_rsq_f32 "ww";
        0x25 v_rcp_f64 "dd"; 0x26 v_rsq_f64 "dd"; 0x27 v_sqrt_f32 "ww"; 0x28 v_sqrt_f64 "dd"; 0x29 v_sin_f32 "ww";
        0x2a v_cos_f32 "ww"; 0x2b v_not_b32 "ww"; 0x2c v_bfrev_b32 "ww"; 0x2d v_ffbh_u32 "ww"; 0x2e v_ffbl_b32 "ww";
        0x2f v_ffbh_i32 "ww"; 0x30 v_frexp_exp_i32_f64 "wd"; 0x31 v_frexp_mant_f64 "dd"; 0x32 v_fract_f64 "dd";
        0x33 v_frexp_exp_i32_f32 "ww"; 0x34 v_frexp_mant_f32 "ww"; 0x38 v_mov_b64 "dd" @gfx942;
        0x39 v_cvt_f16_u16 "wh"; 0x3a v_cvt_f16_i16 "wh"; 0x3b v_cvt_u16_f16 "wh"; 0x3c v_cvt_i16_f16 "wh";
        0x3d v_rcp_f16 "wh"; 0x3e v_sqrt_f16 "wh"; 0x3f v_rsq_f16 "wh"; 0x40 v_log_f16 "wh"; 0x41 v_exp_f16 "wh";
        0x42 v_frexp_mant_f16 "wh"; 0x43 v_frexp_exp_i16_f16 "wh"; 0x44 v_floor_f16 "wh"; 0x45 v_ceil_f16 "wh";
        0x46 v_trunc_f16 "wh"; 0x47 v_rndne_f16 "wh"; 0x48 v_fract_f16 "wh"; 0x49 v_sin_f16 "wh"; 0x4a v_cos_f16 "wh";
        0x4b v_exp_legacy_f32 "ww"; 0x4c v_log_legacy_f32 "ww"; 0x4d v_cvt_norm_i16_f16 "wh";
        0x4e v_cvt_norm_u16_f16 "wh"; 0x4f v_sat_pk_u8_i16 "wh"; 0x51 v_swap_b32 "ww"; 0x52 v_accvgpr_mov_b32 "ww";
        0x54 v_cvt_f32_fp8 "ww" @gfx942; 0x55 v_cvt_f32_bf8 "ww" @gfx942; 0x56 v_cvt_pk_f32_fp8 "dw" @gfx942;
        0x57 v_cvt_pk_f32_bf8 "dw" @gfx942;
    }
    Vop3 {
        0x1c0 v_mad_legacy_f32 "wwww" @gfx90a; 0x1c1 v_mad_f32 "wwww" @gfx90a; 0x1c2 v_mad_i32_i24 "wwww";
        0x1c3 v_mad_u32_u24 "wwww"; 0x1c4 v_cubeid_f32 "wwww"; 0x1c5 v_cubesc_f32 "wwww"; 0x1c6 v_cubetc_f32 "wwww";
        0x1c7 v_cubema_f32 "wwww"; 0x1c8 v_bfe_u32 "wwww"; 0x1c9 v_bfe_i32 "wwww"; 0x1ca v_bfi_b32 "wwww";
        0x1cb v_fma_f32 "wwww"; 0x1cc v_fma_f64 "dddd"; 0x1cd v_lerp_u8 "wwww"; 0x1ce v_alignbit_b32 "wwww";
        0x1cf v_alignbyte_b32 "wwww"; 0x1d0 v_min3_f32 "wwww"; 0x1d1 v_min3_i32 "wwww"; 0x1d2 v_min3_u32 "wwww";
        0x1d3 v_max3_f32 "wwww"; 0x1d4 v_max3_i32 "wwww"; 0x1d5 v_max3_u32 "wwww"; 0x1d6 v_med3_f32 "wwww";
        0x1d7 v_med3_i32 "wwww"; 0x1d8 v_med3_u32 "wwww"; 0x1d9 v_sad_u8 "wwww"; 0x1da v_sad_hi_u8 "wwww";
        0x1db v_sad_u16 "wwww"; 0x1dc v_sad_u32 "wwww"; 0x1dd v_cvt_pk_u8_f32 "wwww"; 0x1de v_div_fixup_f32 "wwww";
        0x1df v_div_fixup_f64 "dddd"; 0x1e0 v_div_scale_f32 "wcwww"; 0x1e1 v_div_scale_f64 "dcddd";
        0x1e2 v_div_fmas_f32 "wwww"; 0x1e3 v_div_fmas_f64 "dddd"; 0x1e4 v_msad_u8 "wwww";
        0x1e5 v_qsad_pk_u16_u8 "ddwd"; 0x1e6 v_mqsad_pk_u16_u8 "ddwd"; 0x1e7 v_mqsad_u32_u8 "4dw4";
        0x1e8 v_mad_u64_u32 "dcwwd"; 0x1e9 v_mad_i64_i32 "dcwwd"; 0x1ea v_mad_legacy_f16 "whhh";
        0x1eb v_mad_legacy_u16 "whhh"; 0x1ec v_mad_legacy_i16 "whhh"; 0x1ed v_perm_b32 "wwww";
        0x1ee v_fma_legacy_f16 "whhh"; 0x1ef v_div_fixup_legacy_f16 "whhh"; 0x1f0 v_cvt_pkaccum_u8_f32 "www";
        0x1f1 v_mad_u32_u16 "whhw"; 0x1f2 v_mad_i32_i16 "whhw"; 0x1f3 v_xad_u32 "wwww"; 0x1f4 v_min3_f16 "whhh";
        0x1f5 v_min3_i16 "whhh"; 0x1f6 v_min3_u16 "whhh"; 0x1f7 v_max3_f16 "whhh"; 0x1f8 v_max3_i16 "whhh";
        0x1f9 v_max3_u16 "whhh"; 0x1fa v_med3_f16 "whhh"; 0x1fb v_med3_i16 "whhh"; 0x1fc v_med3_u16 "whhh";
        0x1fd v_lshl_add_u32 "wwww"; 0x1fe v_add_lshl_u32 "wwww"; 0x1ff v_add3_u32 "wwww"; 0x200 v_lshl_or_b32 "wwww";
        0x201 v_and_or_b32 "wwww"; 0x202 v_or3_b32 "wwww"; 0x203 v_mad_f16 "whhh"; 0x204 v_mad_u16 "whhh";
        0x205 v_mad_i16 "whhh"; 0x206 v_fma_f16 "whhh"; 0x207 v_div_fixup_f16 "whhh";
        0x208 v_lshl_add_u64 "ddwd" @gfx942; 0x280 v_add_f64 "ddd"; 0x281 v_mul_f64 "ddd"; 0x282 v_min_f64 "ddd";
        0x283 v_max_f64 "ddd"; 0x284 v_ldexp_f64 "ddw"; 0x285 v_mul_lo_u32 "www"; 0x286 v_mul_hi_u32 "www";
        0x287 v_mul_hi_i32 "www"; 0x288 v_ldexp_f32 "www"; 0x289 v_readlane_b32 "sww"; 0x28a v_writelane_b32 "www";
        0x28b v_bcnt_u32_b32 "www"; 0x28c v_mbcnt_lo_u32_b32 "www"; 0x28d v_mbcnt_hi_u32_b32 "www";
        0x28f v_lshlrev_b64 "dwd"; 0x290 v_lshrrev_b64 "dwd"; 0x291 v_ashrrev_i64 "dwd"; 0x292 v_trig_preop_f64 "ddw";
        0x293 v_bfm_b32 "www"; 0x294 v_cvt_pknorm_i16_f32 "www"; 0x295 v_cvt_pknorm_u16_f32 "www";
        0x296 v_cvt_pkrtz_f16_f32 "www"; 0x297 v_cvt_pk_u16_u32 "www"; 0x298 v_cvt_pk_i16_i32 "www";
        0x299 v_cvt_pknorm_i16_f16 "whh"; 0x29a v_cvt_pknorm_u16_f16 "whh"; 0x29c v_add_i32 "www";
        0x29d v_sub_i32 "www"; 0x29e v_add_i16 "whh"; 0x29f v_sub_i16 "whh"; 0x2a0 v_pack_b32_f16 "whh";
        0x2a1 v_mul_legacy_f32 "www"; 0x2a2 v_cvt_pk_fp8_f32 "www" @gfx942; 0x2a3 v_cvt_pk_bf8_f32 "www" @gfx942;
        0x2a4 v_cvt_sr_fp8_f32 "www" @gfx942; 0x2a5 v_cvt_sr_bf8_f32 "www" @gfx942;
    }
    Vop3p {
        0x00 v_pk_mad_i16 "wppp"; 0x01 v_pk_mul_lo_u16 "wpp"; 0x02 v_pk_add_i16 "wpp"; 0x03 v_pk_sub_i16 "wpp";
        0x04 v_pk_lshlrev_b16 "wpp"; 0x05 v_pk_lshrrev_b16 "wpp"; 0x06 v_pk_ashrrev_i16 "wpp";
        0x07 v_pk_max_i16 "wpp"; 0x08 v_pk_min_i16 "wpp"; 0x09 v_pk_mad_u16 "wppp"; 0x0a v_pk_add_u16 "wpp";
        0x0b v_pk_sub_u16 "wpp"; 0x0c v_pk_max_u16 "wpp"; 0x0d v_pk_min_u16 "wpp"; 0x0e v_pk_fma_f16 "wppp";
        0x0f v_pk_add_f16 "wpp"; 0x10 v_pk_mul_f16 "wpp"; 0x11 v_pk_min_f16 "wpp"; 0x12 v_pk_max_f16 "wpp";
        0x20 v_fma_mix_f32 "wwww"; 0x21 v_fma_mixlo_f16 "wwww"; 0x22 v_fma_mixhi_f16 "wwww";
        0x23 v_dot2_f32_f16 "wppw"; 0x26 v_dot2_i32_i16 "wppw"; 0x27 v_dot2_u32_u16 "wppw"; 0x28 v_dot4_i32_i8 "wwww";
        0x29 v_dot4_u32_u8 "wwww"; 0x2a v_dot8_i32_i4 "wwww"; 0x2b v_dot8_u32_u4 "wwww"; 0x30 v_pk_fma_f32 "qqqq";
        0x31 v_pk_mul_f32 "qqq"; 0x32 v_pk_add_f32 "qqq"; 0x33 v_pk_mov_b32 "qqq";
        0x3e v_mfma_f32_16x16x8_xf32 "4dd4" @gfx942; 0x3f v_mfma_f32_32x32x4_xf32 "gddg" @gfx942;
        0x40 v_mfma_f32_32x32x1_2b_f32 "xwwx" = "v_mfma_f32_32x32x1f32";
        0x41 v_mfma_f32_16x16x1_4b_f32 "gwwg" = "v_mfma_f32_16x16x1f32";
        0x42 v_mfma_f32_4x4x1_16b_f32 "4ww4" = "v_mfma_f32_4x4x1f32";
        0x44 v_mfma_f32_32x32x2_f32 "gwwg" = "v_mfma_f32_32x32x2f32";
        0x45 v_mfma_f32_16x16x4_f32 "4ww4" = "v_mfma_f32_16x16x4f32";
        0x48 v_mfma_f32_32x32x4_2b_f16 "xddx" = "v_mfma_f32_32x32x4f16";
        0x49 v_mfma_f32_16x16x4_4b_f16 "gddg" = "v_mfma_f32_16x16x4f16";
        0x4a v_mfma_f32_4x4x4_16b_f16 "4dd4" = "v_mfma_f32_4x4x4f16";
        0x4c v_mfma_f32_32x32x8_f16 "gddg" = "v_mfma_f32_32x32x8f16";
        0x4d v_mfma_f32_16x16x16_f16 "4dd4" = "v_mfma_f32_16x16x16f16";
        0x50 v_mfma_i32_32x32x4_2b_i8 "xwwx" = "v_mfma_i32_32x32x4i8";
        0x51 v_mfma_i32_16x16x4_4b_i8 "gwwg" = "v_mfma_i32_16x16x4i8";
        0x52 v_mfma_i32_4x4x4_16b_i8 "4ww4" = "v_mfma_i32_4x4x4i8";
        0x54 v_mfma_i32_32x32x8_i8 "gwwg" @gfx90a = "v_mfma_i32_32x32x8i8";
        0x55 v_mfma_i32_16x16x16_i8 "4ww4" @gfx90a = "v_mfma_i32_16x16x16i8";
        0x56 v_mfma_i32_32x32x16_i8 "gddg" @gfx942; 0x57 v_mfma_i32_16x16x32_i8 "4dd4" @gfx942;
        0x58 v_accvgpr_read_b32 "ww"; 0x59 v_accvgpr_write_b32 "ww"; 0x5d v_mfma_f32_32x32x4_2b_bf16 "xddx" @gfx942;
        0x5e v_mfma_f32_16x16x4_4b_bf16 "gddg" @gfx942; 0x5f v_mfma_f32_4x4x4_16b_bf16 "4dd4" @gfx942;
        0x60 v_mfma_f32_32x32x8_bf16 "gddg" @gfx942; 0x61 v_mfma_f32_16x16x16_bf16 "4dd4" @gfx942;
        0x62 v_smfmac_f32_16x16x32_f16 "4d4w" @gfx942; 0x64 v_smfmac_f32_32x32x16_f16 "gd4w" @gfx942;
        0x66 v_smfmac_f32_16x16x32_bf16 "4d4w" @gfx942; 0x68 v_mfma_f32_32x32x2bf16 "xwwx" @gfx90a;
        0x68 v_smfmac_f32_32x32x16_bf16 "gd4w" @gfx942; 0x69 v_mfma_f32_16x16x2bf16 "gwwg" @gfx90a;
        0x6a v_smfmac_i32_16x16x64_i8 "4d4w" @gfx942; 0x6b v_mfma_f32_4x4x2bf16 "4ww4" @gfx90a;
        0x6c v_mfma_f32_32x32x4bf16 "gwwg" @gfx90a; 0x6c v_smfmac_i32_32x32x32_i8 "gd4w" @gfx942;
        0x6d v_mfma_f32_16x16x8bf16 "4ww4" @gfx90a; 0x6e v_mfma_f64_16x16x4_f64 "8dd8" = "v_mfma_f64_16x16x4f64";
        0x6f v_mfma_f64_4x4x4_4b_f64 "dddd" = "v_mfma_f64_4x4x4f64"; 0x70 v_mfma_f32_16x16x32_bf8_bf8 "4dd4" @gfx942;
        0x71 v_mfma_f32_16x16x32_bf8_fp8 "4dd4" @gfx942; 0x72 v_mfma_f32_16x16x32_fp8_bf8 "4dd4" @gfx942;
        0x73 v_mfma_f32_16x16x32_fp8_fp8 "4dd4" @gfx942; 0x74 v_mfma_f32_32x32x16_bf8_bf8 "gddg" @gfx942;
        0x75 v_mfma_f32_32x32x16_bf8_fp8 "gddg" @gfx942; 0x76 v_mfma_f32_32x32x16_fp8_bf8 "gddg" @gfx942;
        0x77 v_mfma_f32_32x32x16_fp8_fp8 "gddg" @gfx942; 0x78 v_smfmac_f32_16x16x64_bf8_bf8 "4d4w" @gfx942;
        0x79 v_smfmac_f32_16x16x64_bf8_fp8 "4d4w" @gfx942; 0x7a v_smfmac_f32_16x16x64_fp8_bf8 "4d4w" @gfx942;
        0x7b v_smfmac_f32_16x16x64_fp8_fp8 "4d4w" @gfx942; 0x7c v_smfmac_f32_32x32x32_bf8_bf8 "gd4w" @gfx942;
        0x7d v_smfmac_f32_32x32x32_bf8_fp8 "gd4w" @gfx942; 0x7e v_smfmac_f32_32x32x32_fp8_bf8 "gd4w" @gfx942;
        0x7f v_smfmac_f32_32x32x32_fp8_fp8 "gd4w" @gfx942;
    }
    Ds {
        0x00 ds_add_u32 "-ww"; 0x01 ds_sub_u32 "-ww"; 0x02 ds_rsub_u32 "-ww"; 0x03 ds_inc_u32 "-ww";
        0x04 ds_dec_u32 "-ww"; 0x05 ds_min_i32 "-ww"; 0x06 ds_max_i32 "-ww"; 0x07 ds_min_u32 "-ww";
        0x08 ds_max_u32 "-ww"; 0x09 ds_and_b32 "-ww"; 0x0a ds_or_b32 "-ww"; 0x0b ds_xor_b32 "-ww";
        0x0c ds_mskor_b32 "-www"; 0x0d ds_write_b32 "-ww"; 0x0e ds_write2_b32 "-www"; 0x0f ds_write2st64_b32 "-www";
        0x10 ds_cmpst_b32 "-www"; 0x11 ds_cmpst_f32 "-www"; 0x12 ds_min_f32 "-ww"; 0x13 ds_max_f32 "-ww";
        0x15 ds_add_f32 "-ww"; 0x17 ds_pk_add_f16 "-ww" @gfx942; 0x18 ds_pk_add_bf16 "-ww" @gfx942;
        0x1d ds_write_addtid_b32 "--w"; 0x1e ds_write_b8 "-ww"; 0x1f ds_write_b16 "-ww"; 0x20 ds_add_rtn_u32 "www";
        0x21 ds_sub_rtn_u32 "www"; 0x22 ds_rsub_rtn_u32 "www"; 0x23 ds_inc_rtn_u32 "www"; 0x24 ds_dec_rtn_u32 "www";
        0x25 ds_min_rtn_i32 "www"; 0x26 ds_max_rtn_i32 "www"; 0x27 ds_min_rtn_u32 "www"; 0x28 ds_max_rtn_u32 "www";
        0x29 ds_and_rtn_b32 "www"; 0x2a ds_or_rtn_b32 "www"; 0x2b ds_xor_rtn_b32 "www"; 0x2c ds_mskor_rtn_b32 "wwww";
        0x2d ds_wrxchg_rtn_b32 "www"; 0x2e ds_wrxchg2_rtn_b32 "dwww"; 0x2f ds_wrxchg2st64_rtn_b32 "dwww";
        0x30 ds_cmpst_rtn_b32 "wwww"; 0x31 ds_cmpst_rtn_f32 "wwww"; 0x32 ds_min_rtn_f32 "www";
        0x33 ds_max_rtn_f32 "www"; 0x34 ds_wrap_rtn_b32 "wwww"; 0x35 ds_add_rtn_f32 "www"; 0x36 ds_read_b32 "ww";
        0x37 ds_read2_b32 "dw"; 0x38 ds_read2st64_b32 "dw"; 0x39 ds_read_i8 "ww"; 0x3a ds_read_u8 "ww";
        0x3b ds_read_i16 "ww"; 0x3c ds_read_u16 "ww"; 0x3d ds_swizzle_b32 "ww"; 0x3e ds_permute_b32 "www";
        0x3f ds_bpermute_b32 "www"; 0x40 ds_add_u64 "-wd"; 0x41 ds_sub_u64 "-wd"; 0x42 ds_rsub_u64 "-wd";
        0x43 ds_inc_u64 "-wd"; 0x44 ds_dec_u64 "-wd"; 0x45 ds_min_i64 "-wd"; 0x46 ds_max_i64 "-wd";
        0x47 ds_min_u64 "-wd"; 0x48 ds_max_u64 "-wd"; 0x49 ds_and_b64 "-wd"; 0x4a ds_or_b64 "-wd";
        0x4b ds_xor_b64 "-wd"; 0x4c ds_mskor_b64 "-wdd"; 0x4d ds_write_b64 "-wd"; 0x4e ds_write2_b64 "-wdd";
        0x4f ds_write2st64_b64 "-wdd"; 0x50 ds_cmpst_b64 "-wdd"; 0x51 ds_cmpst_f64 "-wdd"; 0x52 ds_min_f64 "-wd";
        0x53 ds_max_f64 "-wd"; 0x54 ds_write_b8_d16_hi "-ww"; 0x55 ds_write_b16_d16_hi "-ww";
        0x56 ds_read_u8_d16 "ww"; 0x57 ds_read_u8_d16_hi "ww"; 0x58 ds_read_i8_d16 "ww"; 0x59 ds_read_i8_d16_hi "ww";
        0x5a ds_read_u16_d16 "ww"; 0x5b ds_read_u16_d16_hi "ww"; 0x5c ds_add_f64 "-wd"; 0x60 ds_add_rtn_u64 "dwd";
        0x61 ds_sub_rtn_u64 "dwd"; 0x62 ds_rsub_rtn_u64 "dwd"; 0x63 ds_inc_rtn_u64 "dwd"; 0x64 ds_dec_rtn_u64 "dwd";
        0x65 ds_min_rtn_i64 "dwd"; 0x66 ds_max_rtn_i64 "dwd"; 0x67 ds_min_rtn_u64 "dwd"; 0x68 ds_max_rtn_u64 "dwd";
        0x69 ds_and_rtn_b64 "dwd"; 0x6a ds_or_rtn_b64 "dwd"; 0x6b ds_xor_rtn_b64 "dwd"; 0x6c ds_mskor_rtn_b64 "dwdd";
        0x6d ds_wrxchg_rtn_b64 "dwd"; 0x6e ds_wrxchg2_rtn_b64 "4wdd"; 0x6f ds_wrxchg2st64_rtn_b64 "4wdd";
        0x70 ds_cmpst_rtn_b64 "dwdd"; 0x71 ds_cmpst_rtn_f64 "dwdd"; 0x72 ds_min_rtn_f64 "dwd";
        0x73 ds_max_rtn_f64 "dwd"; 0x76 ds_read_b64 "dw"; 0x77 ds_read2_b64 "4w"; 0x78 ds_read2st64_b64 "4w";
        0x7c ds_add_rtn_f64 "dwd"; 0x7e ds_condxchg32_rtn_b64 "dwd"; 0xb6 ds_read_addtid_b32 "w";
        0xb7 ds_pk_add_rtn_f16 "www" @gfx942; 0xb8 ds_pk_add_rtn_bf16 "www" @gfx942; 0xbd ds_consume "w";
        0xbe ds_append "w"; 0xde ds_write_b96 "-w3"; 0xdf ds_write_b128 "-w4"; 0xfe ds_read_b96 "3w";
        0xff ds_read_b128 "4w";
    }
    Flat {
        0x10 load_ubyte "w-"; 0x11 load_sbyte "w-"; 0x12 load_ushort "w-"; 0x13 load_sshort "w-";
        0x14 load_dword "w-"; 0x15 load_dwordx2 "d-"; 0x16 load_dwordx3 "3-"; 0x17 load_dwordx4 "4-";
        0x18 store_byte "-w"; 0x19 store_byte_d16_hi "-w"; 0x1a store_short "-w"; 0x1b store_short_d16_hi "-w";
        0x1c store_dword "-w"; 0x1d store_dwordx2 "-d"; 0x1e store_dwordx3 "-3"; 0x1f store_dwordx4 "-4";
        0x20 load_ubyte_d16 "w-"; 0x21 load_ubyte_d16_hi "w-"; 0x22 load_sbyte_d16 "w-"; 0x23 load_sbyte_d16_hi "w-";
        0x24 load_short_d16 "w-"; 0x25 load_short_d16_hi "w-"; 0x26 load_lds_ubyte "--" @gfx942;
        0x27 load_lds_sbyte "--" @gfx942; 0x28 load_lds_ushort "--" @gfx942; 0x29 load_lds_sshort "--" @gfx942;
        0x2a load_lds_dword "--" @gfx942; 0x40 atomic_swap "ww"; 0x41 atomic_cmpswap "wd"; 0x42 atomic_add "ww";
        0x43 atomic_sub "ww"; 0x44 atomic_smin "ww"; 0x45 atomic_umin "ww"; 0x46 atomic_smax "ww";
        0x47 atomic_umax "ww"; 0x48 atomic_and "ww"; 0x49 atomic_or "ww"; 0x4a atomic_xor "ww"; 0x4b atomic_inc "ww";
        0x4c atomic_dec "ww"; 0x4d atomic_add_f32 "ww"; 0x4e atomic_pk_add_f16 "ww"; 0x4f atomic_add_f64 "dd";
        0x50 atomic_min_f64 "dd"; 0x51 atomic_max_f64 "dd"; 0x52 atomic_pk_add_bf16 "ww" @gfx942;
        0x60 atomic_swap_x2 "dd"; 0x61 atomic_cmpswap_x2 "d4"; 0x62 atomic_add_x2 "dd"; 0x63 atomic_sub_x2 "dd";
        0x64 atomic_smin_x2 "dd"; 0x65 atomic_umin_x2 "dd"; 0x66 atomic_smax_x2 "dd"; 0x67 atomic_umax_x2 "dd";
        0x68 atomic_and_x2 "dd"; 0x69 atomic_or_x2 "dd"; 0x6a atomic_xor_x2 "dd"; 0x6b atomic_inc_x2 "dd";
        0x6c atomic_dec_x2 "dd";
    }
    Mubuf {
        0x28 wbl2 ""; 0x3e wbinvl1 ""; 0x3f wbinvl1_vol ""; 0x29 invl2 "" @gfx90a; 0x29 inv "" @gfx942;
    }
    }
    again {
    Mubuf {
        0x10 load_ubyte "w-"; 0x11 load_sbyte "w-"; 0x12 load_ushort "w-"; 0x13 load_sshort "w-";
        0x14 load_dword "w-"; 0x15 load_dwordx2 "d-"; 0x16 load_dwordx3 "3-"; 0x17 load_dwordx4 "4-";
        0x18 store_byte "-w"; 0x19 store_byte_d16_hi "-w"; 0x1a store_short "-w"; 0x1b store_short_d16_hi "-w";
        0x1c store_dword "-w"; 0x1d store_dwordx2 "-d"; 0x1e store_dwordx3 "-3"; 0x1f store_dwordx4 "-4";
        0x20 load_ubyte_d16 "w-"; 0x21 load_ubyte_d16_hi "w-"; 0x22 load_sbyte_d16 "w-"; 0x23 load_sbyte_d16_hi "w-";
        0x24 load_short_d16 "w-"; 0x25 load_short_d16_hi "w-"; 0x40 atomic_swap "ww"; 0x41 atomic_cmpswap "wd";
        0x42 atomic_add "ww"; 0x43 atomic_sub "ww"; 0x44 atomic_smin "ww"; 0x45 atomic_umin "ww";
        0x46 atomic_smax "ww"; 0x47 atomic_umax "ww"; 0x48 atomic_and "ww"; 0x49 atomic_or "ww"; 0x4a atomic_xor "ww";
        0x4b atomic_inc "ww"; 0x4c atomic_dec "ww"; 0x4d atomic_add_f32 "ww"; 0x4e atomic_pk_add_f16 "ww";
        0x4f atomic_add_f64 "dd"; 0x50 atomic_min_f64 "dd"; 0x51 atomic_max_f64 "dd"; 0x60 atomic_swap_x2 "dd";
        0x61 atomic_cmpswap_x2 "d4"; 0x62 atomic_add_x2 "dd"; 0x63 atomic_sub_x2 "dd"; 0x64 atomic_smin_x2 "dd";
        0x65 atomic_umin_x2 "dd"; 0x66 atomic_smax_x2 "dd"; 0x67 atomic_umax_x2 "dd"; 0x68 atomic_and_x2 "dd";
        0x69 atomic_or_x2 "dd"; 0x6a atomic_xor_x2 "dd"; 0x6b atomic_inc_x2 "dd"; 0x6c atomic_dec_x2 "dd";
    }
    Vop3p {
        0x63 v_mfma_f32_32x32x4_2b_bf16 "xddx" @gfx90a = "v_mfma_f32_32x32x4bf16_1k";
        0x64 v_mfma_f32_16x16x4_4b_bf16 "gddg" @gfx90a = "v_mfma_f32_16x16x4bf16_1k";
        0x65 v_mfma_f32_4x4x4_16b_bf16 "4dd4" @gfx90a = "v_mfma_f32_4x4x4bf16_1k";
        0x66 v_mfma_f32_32x32x8_bf16 "gddg" @gfx90a = "v_mfma_f32_32x32x8bf16_1k";
        0x67 v_mfma_f32_16x16x16_bf16 "4dd4" @gfx90a = "v_mfma_f32_16x16x16bf16_1k";
    }
}
}

impl Op {
    /// Whether it multiplies matrices.
    pub fn is_matrix(self) -> bool {
        let name = self.name();
        name.starts_with("v_mfma_") || name.starts_with("v_smfmac_")
    }

    /// Whether it is a branch by an immediate.
    pub fn is_branch(self) -> bool {
        use Op::*;
        matches!(
            self,
            s_branch
                | s_cbranch_scc0
                | s_cbranch_scc1
                | s_cbranch_vccz
                | s_cbranch_vccnz
                | s_cbranch_execz
                | s_cbranch_execnz
        )
    }
}
