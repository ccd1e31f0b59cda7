//! What shape the weather transformer has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Faults;

/// Group norm has this many groups, as in the original.
pub const NORM_GROUPS: usize = 8;

/// The largest head that the attention room takes.
pub const MAX_HEAD_DIM: usize = 512;

/// No axis of a model is longer; keeps every product of two axes far from overflow.
const MAX_AXIS: usize = 1 << 20;
/// No model has more blocks; a plan of so many takes seconds and 1 GB.
const MAX_LAYERS: usize = 1 << 14;

/// The shape of the weather transformer. [`Default`] is the configuration `base`.
///
/// # Source
/// alexk101/sci-scaling@7955f59, `models/weather_transformer.py`, under the names of its configuration file. What that
/// file cannot reach (from `mlp_ratio` on) has the name of the constructor's argument. Differs on purpose: `head` is new,
/// and attentions that the original gets wrong do not exist here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WeatherVitConfig {
    /// Width D of a token. A multiple of `num_heads`.
    pub embed_dim: usize,
    /// Number of blocks L.
    pub num_layers: usize,
    /// Attention heads in a block; each has `embed_dim / num_heads` numbers, at most 512.
    pub num_heads: usize,
    /// Rows and columns of the grid, `[height, width]`. Multiples of `patch_size`.
    pub img_size: [usize; 2],
    /// Edge of the square patch that becomes one token, in grid cells.
    pub patch_size: usize,
    /// Variables in one frame of the input. With `sequence_length` S the network reads S times as many.
    pub input_channels: usize,
    /// Variables that are predicted: the first ones of the file.
    pub output_channels: usize,
    /// Whether the packed query, key, value projection has a bias.
    pub qkv_bias: bool,
    /// Probability of dropping a number after the embedding, a projection or an activation; 0 = never.
    pub dropout: f64,
    /// Probability of dropping an attention weight; 0 = never.
    pub attention_dropout: f64,
    /// Probability of dropping the last block for a sample; block i of L drops with `i / (L - 1)` of it.
    pub stochastic_depth: f64,
    /// Whether blocks are recomputed in the backward pass instead of stored: less memory, a third more work.
    pub use_checkpointing: bool,
    /// Width of the hidden layer of the MLP, as a multiple of `embed_dim`; rounded down to a whole number.
    pub mlp_ratio: f64,
    /// How tokens become a grid again: `bilinear` as the document says, `unpatchify` as the later code does.
    pub head: Head,
    /// Activation of the MLP.
    pub activation_type: Activation,
    /// Which norm, before attention, before the MLP and at the end.
    pub normalization_type: Normalization,
    /// Whether a block normalises its input (`x + f(norm(x))`) or its output (`norm(x + f(x))`).
    pub use_pre_norm: bool,
    /// Whether attention and MLP both read the block's input (`x + attn(norm1 x) + mlp(norm2 x)`).
    pub use_parallel_attention: bool,
}

/// How tokens become a grid again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// One number a token and variable, then bilinear resize to the grid. Cannot hold detail below the patch.
    Bilinear,
    /// Patch x patch numbers a token and variable, put in place.
    Unpatchify,
}

/// Activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// The hyperbolic-tangent approximation of gelu.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// `λx` above 0, `λα(exp(x) − 1)` below.
    Selu,
    /// `x · tanh(ln(1 + exp(x)))`.
    Mish,
}

/// Which norm the blocks use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Layer norm over the width of a token.
    Layer,
    /// Root mean square over the width of a token, no bias.
    Rms,
    /// Group norm, 8 groups of channels, statistics over all tokens of a sample.
    Group,
    /// Every channel alone over all tokens of a sample, without parameters.
    Instance,
}

impl Default for WeatherVitConfig {
    fn default() -> WeatherVitConfig {
        WeatherVitConfig {
            embed_dim: 384,
            num_layers: 12,
            num_heads: 8,
            img_size: [360, 720],
            patch_size: 8,
            input_channels: 20,
            output_channels: 20,
            qkv_bias: true,
            dropout: 0.1,
            attention_dropout: 0.1,
            stochastic_depth: 0.1,
            use_checkpointing: false,
            mlp_ratio: 4.0,
            head: Head::Bilinear,
            activation_type: Activation::Gelu,
            normalization_type: Normalization::Layer,
            use_pre_norm: true,
            use_parallel_attention: false,
        }
    }
}

impl WeatherVitConfig {
    /// Tokens down and across, `[height, width] / patch_size`. Of a valid configuration.
    pub fn token_grid(&self) -> [usize; 2] {
        self.img_size.map(|n| n / self.patch_size.max(1))
    }

    /// Tokens of a sample.
    pub fn tokens(&self) -> usize {
        let [h, w] = self.token_grid();
        h.saturating_mul(w)
    }

    /// Numbers in one attention head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads.max(1)
    }

    /// Width of the MLP's hidden layer.
    pub fn mlp_dim(&self) -> usize {
        // Truncation is the original's rule: int(D · mlp_ratio).
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Probability with which block `i` is dropped: 0 for the first, `stochastic_depth` for the last.
    pub fn drop_path(&self, i: usize) -> f64 {
        match self.num_layers {
            0 | 1 => 0.0,
            layers => self.stochastic_depth * i as f64 / (layers - 1) as f64,
        }
    }

    /// Adds a line to `faults` for everything that no model can have. Each line starts with the key at fault.
    pub fn validate(&self, faults: &mut Faults) {
        for (key, n) in [
            ("embed_dim", self.embed_dim),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("input_channels", self.input_channels),
            ("output_channels", self.output_channels),
        ] {
            let most = if key == "num_layers" { MAX_LAYERS } else { MAX_AXIS };
            if !(1..=most).contains(&n) {
                faults.push(format!("{key}: expected a whole number from 1 to {most}, found {n}"));
            }
        }
        for (key, p) in [
            ("dropout", self.dropout),
            ("attention_dropout", self.attention_dropout),
            ("stochastic_depth", self.stochastic_depth),
        ] {
            if !(0.0..1.0).contains(&p) {
                faults.push(format!(
                    "{key}: expected a probability of at least 0 and below 1, found {p}; 0 turns it off"
                ));
            }
        }
        self.validate_grid(faults);
        self.validate_width(faults);
        if self.use_parallel_attention && !self.use_pre_norm {
            faults.push(
                "use_parallel_attention: expected false with use_pre_norm: false, found true; \
                 the parallel form exists for pre-norm blocks only",
            );
        }
    }

    fn validate_grid(&self, faults: &mut Faults) {
        let [h, w] = self.img_size;
        if [h, w].iter().any(|n| !(1..=MAX_AXIS).contains(n)) {
            faults.push(format!(
                "img_size: expected [height, width], each from 1 to {MAX_AXIS}, found [{h}, {w}]; write e.g. [360, 720]"
            ));
            return;
        }
        let p = self.patch_size;
        if p == 0 || (h % p == 0 && w % p == 0) {
            return;
        }
        let mend = match (h - h % p, w - w % p) {
            (0, _) | (_, 0) => "take a smaller patch_size".to_owned(),
            (h, w) => format!("write img_size: [{h}, {w}] with crop: top_left, or a patch_size that divides both"),
        };
        faults.push(format!("img_size: expected multiples of patch_size {p}, found [{h}, {w}]; {mend}"));
    }

    fn validate_width(&self, faults: &mut Faults) {
        let (d, heads) = (self.embed_dim, self.num_heads);
        if heads > 0 && d > 0 {
            if d % heads != 0 {
                faults.push(format!(
                    "num_heads: expected a divisor of embed_dim {d}, found {heads}; {}",
                    nearest_divisor(d, heads)
                ));
            } else if d / heads > MAX_HEAD_DIM {
                faults.push(format!(
                    "num_heads: expected heads of at most {MAX_HEAD_DIM} numbers, found {} (embed_dim {d} / {heads}); \
                     take at least {} heads",
                    d / heads,
                    d.div_ceil(MAX_HEAD_DIM)
                ));
            }
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0 && (d == 0 || self.mlp_dim() > 0)) {
            faults.push(format!(
                "mlp_ratio: expected a number above 0 and at most 64 that gives at least 1 hidden unit, found {}; 4 is usual",
                self.mlp_ratio
            ));
        }
        if self.normalization_type == Normalization::Group && d % NORM_GROUPS != 0 {
            faults.push(format!(
                "normalization_type: expected an embed_dim that is a multiple of {NORM_GROUPS} for group, found {d}; \
                 use layer or rms, or embed_dim: {}",
                d.next_multiple_of(NORM_GROUPS)
            ));
        }
        if self.normalization_type == Normalization::Instance && self.tokens() == 1 {
            faults.push(
                "normalization_type: expected more than one token for instance, found one: the norm of a single number is \
                 0; use layer, or a smaller patch_size",
            );
        }
    }
}

/// "write 8": the divisors of `d` next to `heads`, so that the message can be acted on.
fn nearest_divisor(d: usize, heads: usize) -> String {
    let below = (1..=heads.min(d)).rev().find(|n| d.is_multiple_of(*n)).unwrap_or(1);
    match (heads..=d).find(|n| d.is_multiple_of(*n)) {
        Some(above) if above != below => format!("the nearest are {below} and {above}"),
        _ => format!("the nearest is {below}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(change: impl FnOnce(&mut WeatherVitConfig)) -> String {
        let mut config = WeatherVitConfig::default();
        change(&mut config);
        let mut faults = Faults::new();
        config.validate(&mut faults);
        faults.to_string()
    }

    #[test]
    fn the_default_is_the_documents_base_and_is_sound() {
        let c = WeatherVitConfig::default();
        assert_eq!((c.embed_dim, c.num_layers, c.num_heads, c.head), (384, 12, 8, Head::Bilinear));
        assert_eq!((c.tokens(), c.head_dim(), c.mlp_dim()), (4050, 48, 1536));
        assert_eq!(faults(|_| ()), "");
    }

    #[test]
    fn drop_path_rises_from_nothing_to_stochastic_depth() {
        let c = WeatherVitConfig { num_layers: 3, stochastic_depth: 0.2, ..Default::default() };
        assert_eq!([0, 1, 2].map(|i| c.drop_path(i)), [0.0, 0.1, 0.2]);
        assert_eq!(WeatherVitConfig { num_layers: 1, ..c }.drop_path(0), 0.0);
    }

    #[test]
    fn a_patch_that_does_not_divide_the_grid_names_the_crop() {
        assert_eq!(
            faults(|c| c.patch_size = 16),
            "img_size: expected multiples of patch_size 16, found [360, 720]; \
             write img_size: [352, 720] with crop: top_left, or a patch_size that divides both"
        );
        assert!(faults(|c| c.patch_size = 400).contains("take a smaller patch_size"));
    }

    #[test]
    fn heads_must_divide_the_width_and_stay_within_the_attention_room() {
        assert_eq!(
            faults(|c| c.num_heads = 7),
            "num_heads: expected a divisor of embed_dim 384, found 7; the nearest are 6 and 8"
        );
        assert!(faults(|c| (c.embed_dim, c.num_heads) = (2048, 2)).contains("take at least 4 heads"));
    }

    #[test]
    fn every_fault_is_listed_at_once_and_nan_is_one() {
        let text = faults(|c| {
            (c.embed_dim, c.num_layers, c.img_size) = (0, 0, [0, 720]);
            (c.dropout, c.mlp_ratio, c.patch_size) = (f64::NAN, f64::NAN, 0);
            (c.use_pre_norm, c.use_parallel_attention) = (false, true);
        });
        let keys: Vec<&str> = text.lines().filter_map(|l| l.split(':').next()).collect();
        let want =
            ["embed_dim", "num_layers", "patch_size", "dropout", "img_size", "mlp_ratio", "use_parallel_attention"];
        assert_eq!(keys, want, "{text}");
    }

    #[test]
    fn a_model_has_no_more_blocks_than_can_be_planned() {
        assert_eq!(faults(|c| c.num_layers = 16_384), "");
        let text = faults(|c| c.num_layers = 16_385);
        assert_eq!(text, "num_layers: expected a whole number from 1 to 16384, found 16385");
    }

    #[test]
    fn group_norm_needs_a_width_of_whole_groups() {
        let text = faults(|c| (c.embed_dim, c.num_heads, c.normalization_type) = (12, 4, Normalization::Group));
        assert!(text.contains("embed_dim: 16"), "{text}");
    }

    #[test]
    fn instance_norm_needs_more_than_one_token() {
        let with = |patch| {
            faults(|c| (c.img_size, c.patch_size, c.normalization_type) = ([8, 8], patch, Normalization::Instance))
        };
        assert!(with(8).starts_with("normalization_type: expected more than one token"), "{}", with(8));
        assert_eq!(with(4), "");
    }
}
