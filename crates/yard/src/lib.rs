//! The model of a yard and its keeper: yard file, plan, supervisor, services and health, state,
//! control API.
//!
//! Read first: [`model::Yard`], what is wanted; [`file::load`], where it comes from;
//! [`plan::difference`], how a running yard gets there.

pub mod address;
pub mod api;
pub mod attach;
pub mod bridge;
pub mod client;
pub mod error;
pub mod explain;
pub mod file;
pub mod health;
pub mod instance;
pub mod joined;
mod journal;
pub mod keeper;
mod logs;
pub mod model;
pub mod networks;
mod path_socket;
pub mod plan;
pub mod restart;
pub mod runtime;
mod server;
pub mod state;
pub mod vm;
mod watched;
