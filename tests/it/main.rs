//! Integration tests: they drive the real binary as a client would, and judge by what comes out of
//! it, by its log, and by what /proc says. By behaviour, a module each.

mod config;
mod confine;
mod crash;
mod demo;
mod errors;
mod fdpass;
mod hang;
mod harness;
mod http;
mod idle;
mod leaks;
mod library;
mod limits;
mod lives;
mod overload;
mod reconfigure;
mod recycle;
mod reload;
mod scale;
mod secrets;
mod serve;
mod signals;
mod staying;
mod stop;
mod store;
mod storm;
mod stuck;
mod systemd;
mod takeback;
mod threads;
mod tidy;
mod upgrade;
