"""Builds the Android demo without Android Studio: `make apk`, `make android-test`. Standard library only."""
