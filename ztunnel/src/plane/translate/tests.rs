mod decisions;
mod following;
mod said;
