//! The run that tests start as a process: a transformer whose step takes a millisecond, on a data set that is written in as many.

use std::path::Path;

use perfrun::data::weather::synthetic::SyntheticWeather;

/// A file of one configuration, `name`: dropout and shuffling on, everything else as `more` has it, a line a key.
pub(crate) fn write_config(folder: &Path, name: &str, more: &[&str]) {
    let mut text = format!(
        "{name}:
  embed_dim: 16
  num_layers: 2
  num_heads: 2
  img_size: [8, 16]
  patch_size: 4
  input_channels: 2
  output_channels: 2
  batch_size: 2
  learning_rate: 1.0e-3
  warmup_steps: 3
  precision: fp32
  num_workers: 1
"
    );
    more.iter().for_each(|line| text += &format!("  {line}\n"));
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}

/// Its data set in `folder`/data: files of `steps` moments.
pub(crate) fn write_data(folder: &Path, steps: usize) {
    let small = SyntheticWeather { height: 8, width: 16, channels: 2, steps, ..SyntheticWeather::default() };
    small.write(&folder.join("data"), |_| {}).unwrap();
}
