use super::*;
use crate::ops::trial;

crate::room_tests!(ROOM);

#[test]
fn a_constant_channel_is_finite_and_gives_the_bias() {
    let op = BatchNorm { eps: 1e-5, statistics: Statistics::Batch { momentum: 0.1 } };
    let channel: (&[usize], &[f32]) = (&[1], &[2.0]);
    let x: (&[usize], &[f32]) = (&[3, 1, 2], &[7.5; 6]);
    assert_eq!(trial::forward(&op, &[x, channel, channel, channel, channel]), [2.0; 6]);
    let dx = trial::backward(&op, &[x, channel, channel, channel, channel], Some(&[1.0; 6]));
    assert!(dx[0].iter().all(|d| d.abs() < 1e-3), "{dx:?}");
}

#[test]
fn nan_stays_in_its_channel() {
    let op = BatchNorm { eps: 1e-5, statistics: Statistics::Batch { momentum: 0.1 } };
    let two: (&[usize], &[f32]) = (&[2], &[1.0, 1.0]);
    let y = trial::forward(&op, &[(&[2, 2], &[f32::NAN, 1.0, 2.0, 3.0]), two, two, two, two]);
    assert!(y[0].is_nan() && y[2].is_nan() && y[1].is_finite() && y[3].is_finite(), "{y:?}");
}

#[test]
fn a_large_mean_does_not_cost_the_variance() {
    let op = BatchNorm { eps: 1e-12, statistics: Statistics::Batch { momentum: 1.0 } };
    let one: (&[usize], &[f32]) = (&[1], &[1.0]);
    let zero: (&[usize], &[f32]) = (&[1], &[0.0]);
    let y = trial::forward(&op, &[(&[4, 1], &[16384.0, 16385.0, 16386.0, 16387.0]), one, zero, zero, one]);
    let want = [-1.5, -0.5, 0.5, 1.5].map(|v: f32| v / 1.25_f32.sqrt());
    assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-6), "{y:?}");
}
