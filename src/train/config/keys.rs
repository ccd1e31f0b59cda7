//! The keys of a configuration: every field's name, other names for it, and the keys of the original without a field.

use super::convert::{FromNode, Wrong};
use super::value::{Node, Value};
use super::{RunConfig, suggest};

/// The blocks of a nested configuration. A key is known in any of them, and without one.
pub(super) const SECTIONS: [&str; 4] = ["model", "data", "training", "experiment"];

/// The block inside a configuration whose keys are written with a dot here.
pub(super) const PROFILER: &str = "flops_profiler";

/// A key that sets a field.
pub(super) struct Key {
    /// The block that it belongs to.
    pub(super) section: &'static str,
    /// Its name, unique through all blocks.
    pub(super) name: &'static str,
    /// Other names for it.
    pub(super) aliases: &'static [&'static str],
    /// Sets the field from a node.
    pub(super) set: fn(&mut RunConfig, &Node) -> Result<(), Wrong>,
}

macro_rules! keys {
    ($($section:ident { $($name:literal $([$($alias:literal),*])? $($field:ident).+;)* })*) => {
        /// Every key that sets a field, in the order in which they are shown.
        pub(super) static KEYS: &[Key] = &[$($(Key {
            section: stringify!($section),
            name: $name,
            aliases: &[$($($alias),*)?],
            set: |config, node| {
                config.$section.$($field).+ = FromNode::from_node(node)?;
                Ok(())
            },
        }),*),*];
    };
}

keys! {
    model {
        "embed_dim" embed_dim;
        "num_layers" num_layers;
        "num_heads" num_heads;
        "img_size" img_size;
        "patch_size" patch_size;
        "input_channels" input_channels;
        "output_channels" output_channels;
        "qkv_bias" qkv_bias;
        "dropout" dropout;
        "attention_dropout" attention_dropout;
        "stochastic_depth" stochastic_depth;
        "use_checkpointing" use_checkpointing;
        "mlp_ratio" mlp_ratio;
        "head" head;
        "activation_type" activation_type;
        "normalization_type" normalization_type;
        "use_pre_norm" use_pre_norm;
        "use_parallel_attention" use_parallel_attention;
    }
    data {
        "data_dir" data_dir;
        "train_data_path" train_data_path;
        "valid_data_path" valid_data_path;
        "test_data_path" test_data_path;
        "means_path" means_path;
        "stds_path" stds_path;
        "normalize" normalize;
        "data_subset" data_subset;
        "sequence_length" sequence_length;
        "dt" dt;
        "temporal_resolution" temporal_resolution;
        "crop" crop;
        "num_workers" num_workers;
    }
    training {
        "batch_size" batch_size;
        "epochs" epochs;
        "max_steps" max_steps;
        "learning_rate" learning_rate;
        "weight_decay" weight_decay;
        "betas" betas;
        "eps" eps;
        "moments" moments;
        "gradients" gradients;
        "lr_schedule" lr_schedule;
        "lr_step_epochs" lr_step_epochs;
        "lr_step_factor" lr_step_factor;
        "warmup_steps" warmup_steps;
        "warmup_epochs" warmup_epochs;
        "warmup_start_factor" warmup_start_factor;
        "min_lr" min_lr;
        "gradient_clipping" gradient_clipping;
        "gradient_accumulation" ["gradient_accumulation_steps"] gradient_accumulation;
        "precision" ["mixed_precision"] precision;
        "allow_tf32" allow_tf32;
        "loss_scale_init" ["init_scale"] loss_scale_init;
        "loss_scale_dynamic" loss_scale_dynamic;
        "loss_scale_window" ["growth_interval"] loss_scale_window;
        "loss_scale_min" ["min_loss_scale"] loss_scale_min;
        "loss_scale_hysteresis" ["hysteresis"] loss_scale_hysteresis;
        "loss_scale_consecutive_hysteresis" ["consecutive_hysteresis"] loss_scale_consecutive_hysteresis;
        "seed" seed;
        "validate_every" ["val_frequency"] validate_every;
        "early_stopping_patience" early_stopping_patience;
        "early_stopping_min_delta" early_stopping_min_delta;
        "flops_budget" flops_budget;
        "time_budget_hours" ["time_budget"] time_budget_hours;
        "save_every" ["save_frequency"] save_every;
        "max_checkpoints" max_checkpoints;
        "checkpoint_dir" checkpoint_dir;
        "log_dir" log_dir;
        "log_frequency" log_frequency;
        "logging_backend" logging_backend;
        "flops_profiler.enabled" flops_profiler.enabled;
        "flops_profiler.profile_step" flops_profiler.profile_step;
        "flops_profiler.module_depth" flops_profiler.module_depth;
        "flops_profiler.top_modules" flops_profiler.top_modules;
        "flops_profiler.detailed" flops_profiler.detailed;
        "flops_profiler.recompute_fwd_factor" flops_profiler.recompute_fwd_factor;
        "flops_profiler.output_file" flops_profiler.output_file;
    }
    experiment {
        "name" name;
        "description" description;
        "strategy" strategy;
        "num_gpus" ["devices"] num_gpus;
        "num_nodes" num_nodes;
    }
}

/// A key of the original that has no field here: what is said when a configuration sets it.
pub(super) struct NoField {
    /// The key.
    pub(super) name: &'static str,
    /// `Ok(None)`: the value asks for what happens anyway. `Ok(Some(notice))`: the value has no effect, and why.
    pub(super) judge: fn(&Node) -> Result<Option<&'static str>, Wrong>,
}

/// Keys of the original that no field stands for.
pub(super) static NO_FIELD: &[NoField] = &[
    NoField { name: "use_flash_attention", judge: |n| always_on(n, FUSED) },
    NoField { name: "use_fused_attention", judge: |n| always_on(n, FUSED) },
    NoField {
        name: "use_kv_cache",
        judge: |n| never_on(n, "a forecast of one step has no earlier keys to remember; remove the key"),
    },
    NoField {
        name: "use_quantization",
        judge: |n| never_on(n, "quantised training is not part of this version; remove the key"),
    },
    NoField {
        name: "quantization_bits",
        judge: |_| Ok(Some("has no effect, as in the original: nothing is quantised")),
    },
    NoField { name: "attention_type", judge: attention_type },
    NoField { name: "use_wandb", judge: |n| Ok(bool::from_node(n)?.then_some(NO_WANDB)) },
    NoField { name: "wandb_project", judge: |_| Ok(Some(NO_WANDB)) },
    NoField {
        name: "temporal_coverage",
        judge: |_| Ok(Some("has no effect, as in the original; data_subset says how much is read")),
    },
    NoField {
        name: "memory_optimization_level",
        judge: |_| Ok(Some("has no effect, as in the original; use_checkpointing is what saves memory")),
    },
    NoField {
        name: "deepspeed_config",
        judge: |_| Ok(Some("that file is not read; this configuration holds the optimiser, schedule and precision")),
    },
    NoField {
        name: "ds_config",
        judge: |_| Ok(Some("that file is not read; this configuration holds the optimiser, schedule and precision")),
    },
];

const FUSED: &str = "has no effect: attention never stores its N x N matrix, and attends over tokens either way";
const NO_WANDB: &str =
    "has no effect: this version writes metrics.jsonl and TensorBoard files, nothing to Weights & Biases";

/// Only attention over all tokens is sound in the original; the others get its defect as the answer.
fn attention_type(node: &Node) -> Result<Option<&'static str>, Wrong> {
    let reason = match node.text() {
        Some("standard" | "full") => return Ok(None),
        Some("sparse" | "sliding_window") => {
            "the original multiplies scores by a 0/1 mask, so masked tokens still count with weight exp(0)"
        }
        Some("global_local") => "the original's mask is one everywhere, so it attends as standard does; write standard",
        Some("linear") => "the original projects the axis of heads instead of features and then fails on its shapes",
        _ => "the default is standard",
    };
    Err(Wrong { expected: "standard".into(), mend: Some(reason.to_owned()) })
}

fn always_on(node: &Node, notice: &'static str) -> Result<Option<&'static str>, Wrong> {
    Ok((!bool::from_node(node)?).then_some(notice))
}

fn never_on(node: &Node, why: &str) -> Result<Option<&'static str>, Wrong> {
    match bool::from_node(node)? {
        false => Ok(None),
        true => Err(Wrong { expected: "false".into(), mend: Some(why.to_owned()) }),
    }
}

/// Words that users bring from elsewhere, and what is meant here.
static ELSEWHERE: &[(&str, &str)] = &[
    ("lr", "did you mean learning_rate?"),
    ("bs", "did you mean batch_size?"),
    ("wd", "did you mean weight_decay?"),
    ("hidden_size", "did you mean embed_dim?"),
    ("dim", "did you mean embed_dim?"),
    ("depth", "did you mean num_layers?"),
    ("heads", "did you mean num_heads?"),
    ("patch", "did you mean patch_size?"),
    ("max_epochs", "did you mean epochs?"),
    ("num_epochs", "did you mean epochs?"),
    ("drop_path", "did you mean stochastic_depth?"),
    ("drop_path_rate", "did you mean stochastic_depth?"),
    ("clip_grad_norm", "did you mean gradient_clipping?"),
    ("max_grad_norm", "did you mean gradient_clipping?"),
    ("in_channels", "did you mean input_channels?"),
    ("out_channels", "did you mean output_channels?"),
    ("scheduler", "did you mean lr_schedule?"),
    ("random_seed", "did you mean seed?"),
    ("resume", "a run is resumed by the flag --resume"),
    ("resume_from_checkpoint", "a run is resumed by the flag --resume"),
    ("device", "the device is chosen by the flag --device"),
    ("optimizer", "AdamW is the only one; its keys are learning_rate, weight_decay, betas and eps"),
    ("optimiser", "AdamW is the only one; its keys are learning_rate, weight_decay, betas and eps"),
    ("window_size", "it belongs to the sliding_window attention, which is not supported; see attention_type"),
    ("linear_heads", "it belongs to the linear attention, which is not supported; see attention_type"),
    ("val_data_path", "did you mean valid_data_path?"),
];

/// The key of that name or other name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name || k.aliases.contains(&name))
}

/// The fieldless key of that name.
pub(super) fn find_no_field(name: &str) -> Option<&'static NoField> {
    NO_FIELD.iter().find(|k| k.name == name)
}

/// Every name that a configuration may use.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let own = KEYS.iter().flat_map(|k| std::iter::once(k.name).chain(k.aliases.iter().copied()));
    own.chain(NO_FIELD.iter().map(|k| k.name)).chain(SECTIONS).chain([PROFILER])
}

/// What to do about the unknown key `name`.
pub(super) fn mend_unknown(name: &str) -> String {
    let lower = name.to_lowercase();
    if let Some((_, hint)) = ELSEWHERE.iter().find(|(word, _)| *word == lower) {
        return (*hint).to_owned();
    }
    if SECTIONS.contains(&name) || name == PROFILER {
        return format!("it is a block of keys; write one of its keys, e.g. {}", first_key_of(name));
    }
    let in_profiler = |suffix: &str| KEYS.iter().map(|k| k.name).find(|k| k.strip_prefix(PROFILER) == Some(suffix));
    let near = match lower.strip_prefix("flops_profiler.") {
        // Compared without the block's name, which would make all of its keys look alike.
        Some(inner) => {
            let inside = KEYS.iter().filter_map(|k| k.name.strip_prefix("flops_profiler."));
            suggest(inner, inside).and_then(|near| in_profiler(&format!(".{near}")))
        }
        None => suggest(&lower, names()).or_else(|| in_profiler(&format!(".{lower}"))),
    };
    match near {
        Some(near) => format!("did you mean {near}?"),
        None => "remove it, or see `perfrun config schema` for every key".to_owned(),
    }
}

/// A key to give as an example of a block's keys.
fn first_key_of(block: &str) -> String {
    let key = KEYS.iter().find(|k| k.section == block || k.name.starts_with(block));
    key.map_or(String::new(), |k| if k.section == block { format!("{block}.{}", k.name) } else { k.name.to_owned() })
}

/// Whether `node` holds a map under `name`, so that it is a block and not a value.
pub(super) fn is_block(name: &str, node: &Node) -> bool {
    (SECTIONS.contains(&name) || name == PROFILER) && matches!(node.value, Value::Map(_) | Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_field_has_a_key_and_every_key_a_field() {
        let config = serde_json::to_value(RunConfig::default()).unwrap();
        let mut fields = Vec::new();
        for section in SECTIONS {
            for (name, value) in config[section].as_object().unwrap() {
                match value.as_object() {
                    Some(block) => fields.extend(block.keys().map(|k| format!("{section}.{name}.{k}"))),
                    None => fields.push(format!("{section}.{name}")),
                }
            }
        }
        let keys: Vec<String> = KEYS.iter().map(|k| format!("{}.{}", k.section, k.name)).collect();
        assert_eq!(keys, fields);
    }

    #[test]
    fn no_name_means_two_things() {
        let mut seen = HashSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name}");
        }
        assert!(ELSEWHERE.iter().all(|(word, _)| !seen.contains(word)));
    }

    #[test]
    fn an_unknown_key_is_answered_with_what_was_meant() {
        for (name, want) in [
            ("embed_dims", "did you mean embed_dim?"),
            ("Learning_Rate", "did you mean learning_rate?"),
            ("lr", "did you mean learning_rate?"),
            ("modle", "did you mean model?"),
            ("warmup", "did you mean warmup_steps?"),
            ("flops_profiler.enable", "did you mean flops_profiler.enabled?"),
            ("model", "it is a block of keys; write one of its keys, e.g. model.embed_dim"),
            ("flops_profiler", "it is a block of keys; write one of its keys, e.g. flops_profiler.enabled"),
            ("flops_profiler.zzz", "remove it, or see `perfrun config schema` for every key"),
            ("enabled", "did you mean flops_profiler.enabled?"),
            ("zzzzzzzzz", "remove it, or see `perfrun config schema` for every key"),
        ] {
            assert_eq!(mend_unknown(name), want, "{name}");
        }
    }
}
