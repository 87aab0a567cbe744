"""A token server for container registries: https://distribution.github.io/distribution/spec/auth/."""
