//! Upgrades that fail: the old master serves on, says why, and the next upgrade works.
