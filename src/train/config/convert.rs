//! From a YAML node to the type of a field, with words for what does not fit.

use std::borrow::Cow;
use std::path::PathBuf;

use super::training::{GradientPrecision, LoggingBackend, LrSchedule, MomentPrecision, Precision};
use super::value::{Node, Value, quote};
use super::{Strategy, suggest};
use crate::data::sherlock::config::{All, HrfAlignment, Mode, Reconstruct, Subjects};
use crate::data::weather::config::{Crop, Hours};
use crate::models::sherlock::loss::{FmriLoss, LossNormalization};
use crate::models::weather_vit::config::{Activation, Head, Normalization};

/// Why a node is not what a key needs.
#[derive(Debug)]
pub(super) struct Wrong {
    /// What the key needs.
    pub(super) expected: Cow<'static, str>,
    /// How to mend it, if more can be said than the default value.
    pub(super) mend: Option<String>,
}

impl Wrong {
    pub(super) fn new(expected: impl Into<Cow<'static, str>>) -> Wrong {
        Wrong { expected: expected.into(), mend: None }
    }

    fn mend(mut self, mend: impl Into<String>) -> Wrong {
        self.mend = Some(mend.into());
        self
    }
}

/// A type that a key can have.
pub(super) trait FromNode: Sized {
    /// Reads the value.
    fn from_node(node: &Node) -> Result<Self, Wrong>;
}

/// The number in `node`, exact: whole, or a float; also between quotes, as the original's `float()` takes it.
fn number(node: &Node) -> Option<Value> {
    match &node.value {
        Value::Int(n) => Some(Value::Int(*n)),
        Value::Float(n) if n.is_finite() => Some(Value::Float(*n)),
        Value::Text(t) => {
            // Digits may be grouped, as YAML 1.1 allows: 1_000.5.
            let t = t.trim().replace('_', "");
            // "017" is 15 to some readers and 17 to others; "inf", "nan" and "infinity" are numbers to Rust.
            let digits = t.trim_start_matches(['+', '-']);
            let is_octal = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
            if is_octal || !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
                return None;
            }
            let whole = t.parse::<i128>().ok().map(Value::Int);
            whole.or_else(|| t.parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::Float))
        }
        _ => None,
    }
}

/// A whole number, also from `1e20` or `4.0` when that is exact.
fn whole(node: &Node) -> Option<i128> {
    match number(node)? {
        Value::Int(n) => Some(n),
        Value::Float(n) if n.fract() == 0.0 && n.abs() <= 2f64.powi(100) => Some(n as i128),
        _ => None,
    }
}

macro_rules! whole_numbers {
    ($($type:ident: $expected:literal),*) => {$(
        impl FromNode for $type {
            fn from_node(node: &Node) -> Result<$type, Wrong> {
                whole(node).and_then(|n| $type::try_from(n).ok()).ok_or_else(|| Wrong::new($expected))
            }
        }
    )*};
}

whole_numbers!(usize: "a whole number of at least 0", u64: "a whole number of at least 0", i64: "a whole number");

impl FromNode for f64 {
    fn from_node(node: &Node) -> Result<f64, Wrong> {
        match number(node) {
            Some(Value::Int(n)) => Ok(n as f64),
            Some(Value::Float(n)) => Ok(n),
            _ => Err(Wrong::new("a finite number")),
        }
    }
}

impl FromNode for bool {
    fn from_node(node: &Node) -> Result<bool, Wrong> {
        match &node.value {
            Value::Bool(b) => Ok(*b),
            Value::Text(t) if ["true", "false"].contains(&t.to_lowercase().as_str()) => {
                Err(Wrong::new("true or false").mend("remove the quotes"))
            }
            _ => Err(Wrong::new("true or false")),
        }
    }
}

impl FromNode for String {
    fn from_node(node: &Node) -> Result<String, Wrong> {
        match &node.value {
            Value::Text(t) => Ok(t.clone()),
            Value::Bool(_) => {
                Err(Wrong::new("text").mend("put it in quotes: YAML reads yes, no, on and off as true or false"))
            }
            Value::Int(_) | Value::Float(_) => Err(Wrong::new("text").mend("put it in quotes")),
            _ => Err(Wrong::new("text")),
        }
    }
}

impl FromNode for PathBuf {
    fn from_node(node: &Node) -> Result<PathBuf, Wrong> {
        let text = String::from_node(node).map_err(|wrong| Wrong { expected: "a path".into(), ..wrong })?;
        if text.starts_with('~') {
            return Err(Wrong::new("a path").mend("`~` is not expanded here; write the whole path"));
        }
        if text.contains("://") {
            return Err(Wrong::new("a path of this file system").mend("fetch the data first"));
        }
        if text.chars().any(char::is_control) {
            return Err(Wrong::new("a path without control characters"));
        }
        Ok(text.into())
    }
}

impl FromNode for Hours {
    fn from_node(node: &Node) -> Result<Hours, Wrong> {
        let expected = || Wrong::new("a time above 0 with its unit s, m, h or d").mend("write e.g. 6h");
        match (&node.value, number(node)) {
            (Value::Text(t), _) => t.parse().map_err(|_| expected()),
            (_, Some(Value::Int(n))) if n > 0 => Ok(Hours(n as f64)),
            (_, Some(Value::Float(n))) if n > 0.0 => Ok(Hours(n)),
            _ => Err(expected()),
        }
    }
}

impl<T: FromNode> FromNode for Option<T> {
    fn from_node(node: &Node) -> Result<Option<T>, Wrong> {
        match node.value {
            Value::Null => Ok(None),
            _ => T::from_node(node)
                .map(Some)
                .map_err(|wrong| Wrong { expected: format!("{} or null", wrong.expected).into(), ..wrong }),
        }
    }
}

impl<T: FromNode, const N: usize> FromNode for [T; N] {
    fn from_node(node: &Node) -> Result<[T; N], Wrong> {
        const COUNTS: [&str; 5] = ["no", "one", "two", "three", "four"];
        let list = format!("a list of {} numbers", COUNTS.get(N).copied().unwrap_or("more"));
        let items = match &node.value {
            Value::List(items) => items.iter().map(T::from_node).collect::<Result<Vec<T>, Wrong>>(),
            _ => Ok(Vec::new()),
        };
        match items.map(<[T; N]>::try_from) {
            Ok(Ok(items)) => Ok(items),
            Ok(Err(_)) => Err(Wrong::new(list)),
            Err(wrong) => Err(Wrong::new(format!("{list}, each {}", wrong.expected))),
        }
    }
}

impl FromNode for Subjects {
    fn from_node(node: &Node) -> Result<Subjects, Wrong> {
        let expected = || Wrong::new("all, a number from 1, or a list of such numbers");
        match &node.value {
            Value::Text(t) if t.trim().eq_ignore_ascii_case("all") => Ok(Subjects::All(All::All)),
            Value::Int(_) => usize::from_node(node).map(|n| Subjects::These(vec![n])).map_err(|_| expected()),
            Value::List(items) => {
                let numbers = items.iter().map(usize::from_node).collect::<Result<Vec<_>, Wrong>>();
                numbers.map(Subjects::These).map_err(|_| expected())
            }
            _ => Err(expected()),
        }
    }
}

/// A choice by name.
pub(super) trait Named: Copy + PartialEq + 'static {
    /// The struct's name, which is its name in the schema.
    const TYPE: &'static str;
    /// Every accepted name; the first name of a choice is its own.
    const NAMES: &'static [(&'static str, Self)];
    /// Names that users know and that are refused, with the reason.
    const REFUSED: &'static [(&'static str, &'static str)] = &[];
}

/// The choice that `node` names. Upper and lower case are the same.
fn choice<T: Named>(node: &Node) -> Result<T, Wrong> {
    let expected = || {
        // Of names for the same choice the first is its own.
        let mut own = T::NAMES.to_vec();
        own.dedup_by(|a, b| a.1 == b.1);
        let mut names: Vec<&str> = own.iter().map(|(name, _)| *name).collect();
        let last = names.pop().unwrap_or_default();
        let names = if names.is_empty() { last.to_owned() } else { format!("{} or {last}", names.join(", ")) };
        Wrong::new(names)
    };
    let text = match &node.value {
        Value::Text(t) => t.trim().to_lowercase(),
        // `precision: 32` is a number to YAML.
        Value::Int(n) => n.to_string(),
        _ => return Err(expected()),
    };
    if let Some((_, choice)) = T::NAMES.iter().find(|(name, _)| *name == text) {
        return Ok(*choice);
    }
    if let Some((_, reason)) = T::REFUSED.iter().find(|(name, _)| *name == text) {
        return Err(expected().mend(*reason));
    }
    match suggest(&text, T::NAMES.iter().map(|(name, _)| *name)) {
        Some(near) => Err(expected().mend(format!("did you mean {}?", quote(near, 40)))),
        None => Err(expected()),
    }
}

macro_rules! named {
    ($type:ident { $($($name:literal)|+ => $variant:ident),* $(,)? } $(refused { $($bad:literal: $why:literal),* $(,)? })?) => {
        impl Named for $type {
            const TYPE: &'static str = stringify!($type);
            const NAMES: &'static [(&'static str, $type)] = &[$($(($name, $type::$variant)),+),*];
            $(const REFUSED: &'static [(&'static str, &'static str)] = &[$(($bad, $why)),*];)?
        }
        impl FromNode for $type {
            fn from_node(node: &Node) -> Result<$type, Wrong> {
                choice(node)
            }
        }
    };
}

named!(Head { "bilinear" => Bilinear, "unpatchify" => Unpatchify });
named!(HrfAlignment { "causal" => Causal, "centered" | "centred" => Centered });
named!(Reconstruct { "stimulus" => Stimulus, "input" => Input });
named!(Mode { "per_subject" => PerSubject, "cross_subject" => CrossSubject });
named!(FmriLoss { "mse" => Mse, "mae" => Mae, "correlation" => Correlation, "pearson" => Pearson });
named!(LossNormalization { "none" => None, "std" => Std, "variance" => Variance });
named!(Crop { "none" => None, "top_left" => TopLeft });
named!(Activation {
    "gelu" => Gelu, "gelu_tanh" => GeluTanh, "relu" => Relu, "silu" | "swish" => Silu, "selu" => Selu, "mish" => Mish,
} refused {
    "elu": "the original has selu, which is elu with fixed constants",
});
named!(Normalization { "layer" => Layer, "rms" => Rms, "group" => Group, "instance" => Instance } refused {
    "batch": "batch norm over tokens is none of the original's choices",
});
named!(LrSchedule {
    "constant" | "none" => Constant, "cosine" => Cosine, "step" => Step, "cosine_per_epoch" => CosinePerEpoch,
} refused {
    "linear": "use cosine: it also falls to 0",
});
named!(Precision {
    "fp32" | "32-true" | "float32" | "32" => Fp32,
    "bf16" | "bf16-mixed" | "bf16-true" | "bfloat16" => Bf16,
    "fp16" | "16-mixed" | "16-true" | "float16" => Fp16,
} refused {
    "mixed": "say which: bf16-mixed or 16-mixed",
    "fp8": "fp8 has no kernel in this version",
    "64-true": "64-bit floats are not trained with; use fp32",
    "fp64": "64-bit floats are not trained with; use fp32",
    "16": "say which: fp16 or bf16",
});
named!(GradientPrecision { "fp32" => Fp32, "pass" => Pass, "factors" => Factors });
named!(MomentPrecision { "fp32" => Fp32, "bf16_stochastic" => Bf16Stochastic } refused {
    "bf16": "rounded to the nearest, second moments do not move: say bf16_stochastic",
});
named!(LoggingBackend { "tensorboard" => Tensorboard, "none" => None } refused {
    "wandb": "this version does not write to Weights & Biases; tensorboard files can be imported there",
    "both": "this version does not write to Weights & Biases; write tensorboard",
});
named!(Strategy {
    "single" | "auto" | "single_device" => Single,
    "ddp" => Ddp,
    "fsdp" => Fsdp,
    "deepspeed" => Deepspeed,
    "zero1" | "deepspeed_stage_1" => Zero1,
    "zero2" | "deepspeed_stage_2" => Zero2,
    "zero3" | "deepspeed_stage_3" => Zero3,
});

/// Every choice's type with all its names, for the schema.
pub(super) fn all_names() -> Vec<(&'static str, Vec<&'static str>)> {
    fn of<T: Named>() -> (&'static str, Vec<&'static str>) {
        (T::TYPE, T::NAMES.iter().map(|(name, _)| *name).collect())
    }
    vec![
        of::<Head>(),
        of::<Crop>(),
        of::<Activation>(),
        of::<Normalization>(),
        of::<LrSchedule>(),
        of::<MomentPrecision>(),
        of::<GradientPrecision>(),
        of::<Precision>(),
        of::<LoggingBackend>(),
        of::<Strategy>(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::value::parse;
    use super::*;

    fn read<T: FromNode>(text: &str) -> Result<T, String> {
        T::from_node(&parse(text).unwrap()).map_err(|w| format!("{}; {}", w.expected, w.mend.unwrap_or_default()))
    }

    #[test]
    fn whole_numbers_come_from_every_exact_spelling_and_from_nothing_else() {
        for (text, want) in
            [("384", 384), ("1e3", 1000), ("4.0", 4), ("1_000", 1000), ("0x10", 16), ("\"32\"", 32), ("1_000.0", 1000)]
        {
            assert_eq!(read::<u64>(text), Ok(want), "{text}");
        }
        for text in
            ["1.5", "-1", "1e-4", "1e30", ".inf", ".nan", "abc", "[1]", "{a: 1}", "~", "true", "017", "\"\"", "\"inf\""]
        {
            assert!(read::<u64>(text).is_err(), "{text}");
        }
        assert_eq!(read::<i64>("-1"), Ok(-1));
    }

    #[test]
    fn numbers_are_finite_and_may_be_quoted() {
        assert_eq!(read::<f64>("\"1e-4\""), Ok(1e-4));
        assert_eq!(read::<f64>("3"), Ok(3.0));
        for text in [".inf", ".nan", "1e999", "nan", "inf", "\"infinity\"", "1e-4x", "1,5", "true"] {
            assert!(read::<f64>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_word_that_yaml_takes_for_a_boolean_is_explained() {
        assert!(read::<String>("no").is_err_and(|e| e.contains("in quotes")));
        assert!(read::<bool>("\"false\"").is_err_and(|e| e.contains("remove the quotes")));
        assert_eq!(read::<bool>("yes"), Ok(true));
        assert!(read::<bool>("1").is_err());
    }

    #[test]
    fn choices_have_aliases_reasons_and_suggestions() {
        assert_eq!(read::<Precision>("BF16-Mixed"), Ok(Precision::Bf16));
        assert_eq!(read::<Precision>("32"), Ok(Precision::Fp32));
        assert_eq!(read::<Precision>("16"), Err("fp32, bf16 or fp16; say which: fp16 or bf16".to_owned()));
        assert_eq!(read::<Activation>("swish"), Ok(Activation::Silu));
        assert!(read::<Normalization>("batch").is_err_and(
            |e| e == "layer, rms, group or instance; batch norm over tokens is none of the original's choices"
        ));
        assert!(read::<Head>("bilinaer").is_err_and(|e| e.ends_with("did you mean bilinear?")));
    }

    #[test]
    fn pairs_have_two_and_options_may_be_null() {
        assert_eq!(read::<[usize; 2]>("[64, 128]"), Ok([64, 128]));
        for text in ["64", "[64]", "[1, 2, 3]", "[a, 2]", "[-1, 2]"] {
            assert!(read::<[usize; 2]>(text).is_err_and(|e| e.starts_with("a list of two numbers")), "{text}");
        }
        assert_eq!(read::<Option<f64>>("~"), Ok(None));
        assert!(read::<Option<f64>>("none").is_err_and(|e| e.starts_with("a finite number or null")));
    }

    #[test]
    fn paths_are_of_this_file_system() {
        assert_eq!(read::<PathBuf>("data/x"), Ok("data/x".into()));
        for text in ["~/data", "s3://bucket/x", "5", "\"a\\nb\"", "\"a\\0b\""] {
            assert!(read::<PathBuf>(text).is_err(), "{text}");
        }
    }
}
