//! Taste that is executable: the house rules and the dependency rules, checked over the sources of the
//! whole workspace. Reads files and builds nothing; a rule that fails names file, line and reason.

#![cfg(test)]

mod chart;
mod layers;
mod mutants;
mod source;
mod style;
mod tree;
