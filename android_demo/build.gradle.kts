// The plugins' versions, which a plugins block could not take from runtimes.toml.
buildscript {
    val described: Map<String, Any> by gradle.extra
    repositories {
        google()
        mavenCentral()
    }
    dependencies {
        classpath("com.android.tools.build:gradle:${described["gradle.android_plugin"]}")
        classpath("org.jetbrains.kotlin:kotlin-gradle-plugin:${described["runtimes.kotlin-stdlib.version"]}")
    }
}
