//! The models: what is built from layers, and what each one needs to know to be built.

pub mod weather_vit;
