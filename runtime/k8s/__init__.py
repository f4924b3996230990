"""Kubernetes: manifests from deploy/config.json, and checks that find what such manifests get wrong."""
