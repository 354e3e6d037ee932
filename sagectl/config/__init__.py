"""From TOML to `core.EngineSpec`: places, schema, loading, and the persisted form of an engine."""
