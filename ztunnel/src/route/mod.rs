//! Where a connection goes: pure functions of one snapshot and the facts about the connection.

pub mod balance;
pub mod decide;
mod outcome;
pub mod survey;
pub mod target;
