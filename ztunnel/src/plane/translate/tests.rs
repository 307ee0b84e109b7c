mod decisions;
mod exactly;
mod following;
mod said;
