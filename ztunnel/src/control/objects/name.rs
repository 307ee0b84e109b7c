//! Names of objects.

pub(in crate::control) use crate::model::name::check_name;
