"""What a recipe means for states: dtypes and what each sharding strategy splits, as tables."""
