//! The command `twoclocks`.

fn main() {}
