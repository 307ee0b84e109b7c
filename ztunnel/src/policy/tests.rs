mod authentication;
mod fixture;
mod properties;
mod reference;
mod services;
mod table;
mod traces;
