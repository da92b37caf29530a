//! Integration tests.

mod demo;
mod fdpass;
