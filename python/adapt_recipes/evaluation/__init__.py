"""What a model gains and costs as its mode moves: `frontier` by arithmetic, `measure` by generating."""
