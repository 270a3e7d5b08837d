//! Formulas against values computed by hand, the conditions of a decision, and properties for all inputs.

mod decisions;
mod formulas;
mod properties;
