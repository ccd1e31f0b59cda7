//! The weather transformer against stored numbers of the reference implementation.
//!
//! Weights and data are filled by a rule (see [`fill`]), so a few numbers of the result pin every layer. The numbers were
//! computed in float64 with alexk101/sci-scaling@7955f59; those of selu, mish and instance norm with
//! `golden/weather_vit/make_variants.py`, which finds numbers of the original again before it gives new ones.

use perfrun::backend::Exec;
use perfrun::data::weather::WeatherBatch;
use perfrun::models::Model;
use perfrun::models::weather_vit::WeatherVit;
use perfrun::models::weather_vit::config::{Activation, Head, Normalization, WeatherVitConfig};
use perfrun::nn::Pass;
use perfrun::tape::{Grads, Param, Tape};
use perfrun::tensor::{Spec, Tensor};
use perfrun::train::config::{LrSchedule, Precision, TrainingConfig};
use perfrun::train::trainer::{Trainer, plan_step};

/// Element `i` of the tensor `name`: FNV-1a of the name, splitmix64 of the index, 24 bits in [-1, 1).
fn r(name: &str, i: u64) -> f64 {
    let h = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut z = h.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    2.0 * ((z >> 40) as f64 / 16_777_216.0) - 1.0
}

/// A parameter: matrices by their fan-in, norm weights around 1, everything else small.
fn fill(name: &str, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let fan_in = shape.iter().skip(1).product::<usize>() as f64;
    let value = |i: u64| match shape.len() {
        1 if name.ends_with("weight") => 1.0 + 0.1 * r(name, i),
        1 => 0.1 * r(name, i),
        _ => r(name, i) / fan_in.sqrt(),
    };
    Tensor::from_f32(shape, &(0..n as u64).map(|i| value(i) as f32).collect::<Vec<_>>()).unwrap()
}

fn data(name: &str, shape: [usize; 4]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_f32(shape, &(0..n as u64).map(|i| r(name, i) as f32).collect::<Vec<_>>()).unwrap()
}

fn tiny(head: Head) -> WeatherVitConfig {
    WeatherVitConfig {
        embed_dim: 16,
        num_layers: 2,
        num_heads: 4,
        img_size: [8, 12],
        patch_size: 4,
        input_channels: 3,
        output_channels: 2,
        head,
        ..WeatherVitConfig::default()
    }
}

fn model(config: &WeatherVitConfig) -> WeatherVit {
    let mut model = WeatherVit::new(config, |layout| Exec::cpu().arena(layout)).unwrap();
    let params = model.params();
    let filled: Vec<(String, Tensor)> = params
        .iter()
        .zip(params.arena().layout().specs())
        .map(|((_, name), spec)| (name.to_owned(), fill(name, spec.shape())))
        .collect();
    model.params_mut().load(filled.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    model
}

fn batch() -> WeatherBatch {
    WeatherBatch { state: data("in.x", [2, 3, 8, 12]), target: data("in.y", [2, 2, 8, 12]) }
}

struct Golden {
    config: WeatherVitConfig,
    params: u64,
    first: [f64; 4],
    last: [f64; 4],
    sum: f64,
    norm: f64,
    loss: f64,
    grad_norm: f64,
}

/// Of an f32 computation of about a hundred sums in a row: relative to the largest number.
const BOUND: f64 = 1e-5;

fn near(what: &str, got: f64, want: f64, scale: f64) {
    assert!((got - want).abs() <= BOUND * scale, "{what}: got {got}, want {want}");
}

fn check(golden: &Golden) {
    let model = model(&golden.config);
    assert_eq!(model.params().count(), golden.params);
    assert_eq!(WeatherVit::parameter_count(&golden.config), golden.params);
    let exec = Exec::cpu();
    let mut tape = Tape::with_params(&exec, model.params().arena());
    let state = tape.input(&batch().state).unwrap();
    let y = model.forward(&mut tape, state, &Pass::eval()).unwrap();
    assert_eq!(tape.spec(y).unwrap(), &Spec::f32([2, 2, 8, 12]).unwrap());
    let out: Vec<f64> = tape.value(y).unwrap().f32().unwrap().iter().map(|&x| f64::from(x)).collect();
    for i in 0..4 {
        near("first row", out[i], golden.first[i], 1.0);
        near("last row", out[out.len() - 4 + i], golden.last[i], 1.0);
    }
    let norm = out.iter().map(|x| x * x).sum::<f64>().sqrt();
    near("sum", out.iter().sum(), golden.sum, 100.0);
    near("2-norm", norm, golden.norm, golden.norm);
    let (grads, loss) = gradients(&model);
    near("loss", loss, golden.loss, 1.0);
    let total: f64 = grads.iter().map(|(_, g)| g * g).sum::<f64>().sqrt();
    near("gradient norm", total, golden.grad_norm, golden.grad_norm);
}

/// The 2-norm of every parameter's gradient, and the loss.
fn gradients(model: &WeatherVit) -> (Vec<(String, f64)>, f64) {
    let exec = Exec::cpu();
    let mut tape = Tape::with_params(&exec, model.params().arena());
    let loss = model.loss(&mut tape, &batch(), &Pass::eval()).unwrap();
    let value = f64::from(tape.tensor(loss).unwrap().item().unwrap());
    let mut grads = Grads::new(&exec, model.params().arena().layout()).unwrap();
    tape.backward(loss, 1.0, &mut grads).unwrap();
    let norm =
        |p: Param| grads.get(p).unwrap().f32().unwrap().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    (model.params().iter().map(|(p, name)| (name.to_owned(), norm(p))).collect(), value)
}

#[test]
fn the_unpatchify_head_gives_the_stored_numbers() {
    check(&Golden {
        config: tiny(Head::Unpatchify),
        params: 7984,
        first: [0.3147884017493981, -0.7619204926858937, -1.1014947950406522, -1.2131039309911613],
        last: [0.4638078591625026, 0.329902245215794, -0.20613379996973877, 0.2490752875377058],
        sum: -6.997358620943249,
        norm: 11.832982337536574,
        loss: 1.4331889402458775,
        grad_norm: 1.1475070270991372,
    });
}

#[test]
fn the_bilinear_head_gives_the_stored_numbers() {
    check(&Golden {
        config: tiny(Head::Bilinear),
        params: 7506,
        first: [0.2578377133872765, 0.2578377133872765, 0.35982932467199963, 0.5638125472414458],
        last: [-0.0014422866282228167, 0.11715083753121405, 0.17644739961093248, 0.17644739961093248],
        sum: 89.81644732537222,
        norm: 13.744883032174224,
        loss: 1.5708267804948752,
        grad_norm: 3.9143460986847067,
    });
}

#[test]
fn rms_norm_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { normalization_type: Normalization::Rms, ..tiny(Head::Unpatchify) },
        params: 7904,
        first: [0.10957323544287668, -0.7019234265119563, -1.3389485477427758, -0.8082271674863769],
        last: [0.44281156303891345, 0.11027756763679814, -0.2522911781382587, 0.3818837419500625],
        sum: -6.225007544286077,
        norm: 11.210937889378545,
        loss: 1.4009174148202803,
        grad_norm: 1.1762738567368243,
    });
}

#[test]
fn group_norm_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { normalization_type: Normalization::Group, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [-0.22185491016103856, -0.6381274090616255, -1.0987305238226588, -1.185211963310351],
        last: [0.642054144121246, -0.013772140706642354, -0.23265895798535144, 0.12595387101538622],
        sum: -25.92488731121619,
        norm: 11.661154195359511,
        loss: 1.4185966735550557,
        grad_norm: 1.1600017346492217,
    });
}

#[test]
fn silu_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { activation_type: Activation::Silu, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [0.3960507769516987, -0.8685467252955488, -1.1353094991961037, -1.2497934991952901],
        last: [0.4064879296884802, 0.4058137554302099, -0.2561304202616266, 0.14899930141276974],
        sum: -7.510509505893225,
        norm: 11.871815930259713,
        loss: 1.4344216926239244,
        grad_norm: 1.1129182421585546,
    });
}

#[test]
fn selu_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { activation_type: Activation::Selu, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [0.16413932421520924, -1.3818757675255946, -1.3055694311039987, -1.0846968514928488],
        last: [0.3735340965239331, 0.44970705126613053, -0.3164693902507285, -0.2910379227386939],
        sum: -9.001257414769537,
        norm: 12.184414238922765,
        loss: 1.4282784696673416,
        grad_norm: 1.2634587518195832,
    });
}

#[test]
fn mish_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { activation_type: Activation::Mish, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [0.29588746142214106, -0.9010348442285442, -1.1750038460209644, -1.1967859371220533],
        last: [0.4520075330250468, 0.3484504655052715, -0.24074373105272467, 0.18684026044365293],
        sum: -7.21114430795912,
        norm: 11.907229271740896,
        loss: 1.433638949027893,
        grad_norm: 1.1380822855116632,
    });
}

#[test]
fn instance_norm_gives_the_stored_numbers_and_has_no_parameters() {
    let config = WeatherVitConfig { normalization_type: Normalization::Instance, ..tiny(Head::Unpatchify) };
    check(&Golden {
        config: config.clone(),
        params: 7824,
        first: [-0.4531395318249108, -0.9645248639317847, -1.3930923944054165, -0.44106139290720087],
        last: [0.1902139680954809, -0.24849160651763397, -0.33675472924803507, 0.18683349309377417],
        // Every channel of a sample has mean 0, and the head has no bias.
        sum: 0.0,
        norm: 10.742832789778738,
        loss: 1.3546477809696365,
        grad_norm: 1.2549566355710389,
    });
    check(&Golden {
        config: WeatherVitConfig { use_pre_norm: false, ..config.clone() },
        params: 7824,
        first: [0.15739578721712782, -0.656406111373722, -0.9872234494202007, -0.45930939015186617],
        last: [0.15726707056244194, 0.4033845272250609, -0.09647962870307905, 0.1929283849132445],
        sum: 0.0,
        norm: 11.570461511849365,
        loss: 1.439095532664695,
        grad_norm: 0.8808026172529995,
    });
    assert!(model(&config).params().iter().all(|(_, name)| !name.contains("norm")));
}

#[test]
fn parallel_attention_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { use_parallel_attention: true, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [0.37763868458047023, -0.8292187552356383, -1.0789620970961338, -1.1418459753949315],
        last: [0.5578289997074196, 0.1887551648170129, -0.26730408940737554, 0.2607668936684694],
        sum: -7.699252884687935,
        norm: 11.935023323441229,
        loss: 1.4367069613036536,
        grad_norm: 1.1543142402038573,
    });
}

#[test]
fn post_norm_gives_the_stored_numbers() {
    check(&Golden {
        config: WeatherVitConfig { use_pre_norm: false, ..tiny(Head::Unpatchify) },
        params: 7984,
        first: [0.34226296942739026, -0.5259064555439414, -0.9438762980067952, -1.1575522049337308],
        last: [0.46333193958815705, 0.43587092372030556, -0.35061875758061545, 0.29277446625621156],
        sum: -12.840933307356316,
        norm: 11.613481931694745,
        loss: 1.4395500449621195,
        grad_norm: 0.871499371006578,
    });
}

#[test]
fn gradients_of_single_tensors_are_the_stored_ones() {
    let names = [
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.1.mlp.3.weight",
        "norm.norm.weight",
        "head.weight",
    ];
    let unpatchify = [
        0.14016577554364595,
        0.5224317395681363,
        0.17829916241988442,
        0.40486349221704554,
        0.21840133641903256,
        0.5037096026583104,
    ];
    let bilinear = [
        0.4715922753331218,
        1.4831878845317312,
        0.563580341990161,
        1.2872972433959662,
        0.3649070659874475,
        1.8021037169319725,
    ];
    for (head, want) in [(Head::Unpatchify, unpatchify), (Head::Bilinear, bilinear)] {
        let (grads, _) = gradients(&model(&tiny(head)));
        for (name, want) in names.iter().zip(want) {
            let got = grads.iter().find(|(n, _)| n == name).unwrap().1;
            near(name, got, want, want);
        }
    }
}

fn plain_training() -> TrainingConfig {
    TrainingConfig {
        learning_rate: 1e-3,
        weight_decay: 0.01,
        warmup_steps: 0,
        lr_schedule: LrSchedule::Constant,
        gradient_clipping: 0.0,
        precision: Precision::Fp32,
        ..TrainingConfig::default()
    }
}

#[test]
fn six_steps_of_adamw_give_the_stored_losses() {
    let config =
        WeatherVitConfig { dropout: 0.0, attention_dropout: 0.0, stochastic_depth: 0.0, ..tiny(Head::Unpatchify) };
    let mut trainer = Trainer::new(model(&config), &Exec::cpu(), &plain_training()).unwrap();
    let want = [
        1.4331889402458775,
        1.371959911566027,
        1.3146544638698163,
        1.262557718331001,
        1.21624665030129,
        1.175588171021284,
    ];
    for want in want {
        near("loss", trainer.step(&[batch()], 1e-3).unwrap().loss, want, 1.0);
    }
    let arena = trainer.model().params().arena().flat().to_f32().unwrap();
    let norm = arena.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    near("parameter norm", norm, 13.954035851660382, 13.95);
}

#[test]
fn parameters_and_names_are_the_published_ones() {
    let base = WeatherVitConfig { head: Head::Unpatchify, ..WeatherVitConfig::default() };
    let of = |d, l, heads, grid, p| {
        let config = WeatherVitConfig {
            embed_dim: d,
            num_layers: l,
            num_heads: heads,
            img_size: grid,
            patch_size: p,
            ..base.clone()
        };
        WeatherVit::parameter_count(&config)
    };
    assert_eq!(of(768, 12, 12, [360, 720], 8), 90_133_248);
    assert_eq!(of(128, 4, 4, [64, 128], 8), 1_137_536);
    assert_eq!(of(768, 12, 12, [64, 128], 8), 87_121_152);
    assert_eq!(of(128, 4, 4, [360, 720], 8), 1_639_552);
    assert_eq!(of(384, 12, 8, [360, 720], 8), 23_832_960);
    assert_eq!(of(768, 24, 16, [360, 720], 8), 175_187_712);
    assert_eq!(of(768, 12, 12, [720, 1440], 8), 99_464_448);
    assert_eq!(WeatherVit::parameter_count(&WeatherVitConfig::default()), 23_349_140);
    let model = WeatherVit::new(&tiny(Head::Unpatchify), |layout| Exec::plan().arena(layout)).unwrap();
    let names: Vec<&str> = model.params().iter().map(|(_, n)| n).collect();
    assert_eq!(names.len(), 3 + 12 * 2 + 3);
    for name in
        ["pos_embed", "patch_embed.proj.bias", "blocks.1.norm2.norm.weight", "blocks.0.mlp.0.bias", "head.weight"]
    {
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn matrix_flops_are_the_closed_form() {
    for (head, grid) in [(Head::Bilinear, [64, 128]), (Head::Unpatchify, [24, 40])] {
        let config = WeatherVitConfig { img_size: grid, num_layers: 3, head, ..WeatherVitConfig::default() };
        let exec = Exec::plan();
        let model = WeatherVit::new(&config, |layout| exec.arena(layout)).unwrap();
        let b = 2;
        let [h, w] = grid;
        let batch = WeatherBatch {
            state: exec.alloc(Spec::f32([b, 20, h, w]).unwrap()).unwrap(),
            target: exec.alloc(Spec::f32([b, 20, h, w]).unwrap()).unwrap(),
        };
        let plan = plan_step(&model, &exec, &batch, &plain_training()).unwrap();
        let [d, l, n, p] = [config.embed_dim, config.num_layers, config.tokens(), config.patch_size].map(|x| x as u128);
        let out = if head == Head::Bilinear { 20 } else { 20 * p * p };
        let embed = 2 * n * d * 20 * p * p;
        let rest = l * (24 * n * d * d + 4 * n * n * d) + 2 * n * d * out;
        assert_eq!(plan.cost.forward.flops.matmul, b as u128 * (embed + rest));
        // Backward is twice forward, except that nobody asks for the gradient of the input.
        assert_eq!(plan.cost.backward.flops.matmul, b as u128 * (2 * rest + embed));
    }
}

#[test]
fn what_the_model_cannot_take_is_an_error_that_names_it() {
    let exec = Exec::cpu();
    let model = model(&tiny(Head::Bilinear));
    let mut tape = Tape::with_params(&exec, model.params().arena());
    let wrong = tape.input(&data("in.x", [2, 4, 8, 12])).unwrap();
    let e = model.forward(&mut tape, wrong, &Pass::eval()).unwrap_err().to_string();
    assert!(e.contains("weather_vit: state: expected [B=2, V_in=3, H=8, W=12], found [2, 4, 8, 12]"), "{e}");
    let bad = WeatherVitConfig { num_heads: 5, ..tiny(Head::Bilinear) };
    assert!(WeatherVit::new(&bad, |layout| exec.arena(layout)).unwrap_err().to_string().contains("num_heads"));
}
