import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

val described: Map<String, Any> by gradle.extra
val jvm = described["app.jvm_target"] as String

android {
    namespace = described["app.namespace"] as String
    compileSdk = described["app.compile_sdk"] as Int
    defaultConfig {
        applicationId = described["app.id"] as String
        minSdk = described["app.min_sdk"] as Int
        targetSdk = described["app.target_sdk"] as Int
        versionCode = described["app.version_code"] as Int
        versionName = described["app.version_name"] as String
        ndk { (described["app.abis"] as List<*>).forEach { abiFilters += "$it" } }
    }
    sourceSets["main"].kotlin.setSrcDirs(listOf(rootProject.file(described["modules.app.kotlin"]!!)))
    sourceSets["main"].assets.setSrcDirs(listOf(layout.buildDirectory.dir("described-assets")))
    sourceSets["main"].res.setSrcDirs(listOf(rootProject.file(described["modules.app.resources"]!!)))
    sourceSets["main"].manifest.srcFile(rootProject.file(described["modules.app.manifest"]!!))
    // Libraries stored in the APK and mapped from it, aligned to 16 KB.
    packaging { jniLibs { useLegacyPackaging = false } }
    compileOptions {
        sourceCompatibility = JavaVersion.toVersion(jvm)
        targetCompatibility = JavaVersion.toVersion(jvm)
    }
}

/** The assets that runtimes.toml lists, and runtimes.json: what is packed, for the app's last screen. */
val describedAssets by tasks.registering {
    val files = (described["modules.app.assets"] as List<*>).map { rootProject.file(it!!) }
    val out = layout.buildDirectory.dir("described-assets")
    val packed = described["packed"] as String
    inputs.files(files)
    inputs.property("packed", packed)
    outputs.dir(out)
    doLast {
        files.forEach { it.copyTo(out.get().file(it.name).asFile, overwrite = true) }
        out.get().file("runtimes.json").asFile.writeText(packed)
    }
}

tasks.named("preBuild") { dependsOn(describedAssets) }

kotlin { compilerOptions { jvmTarget = JvmTarget.fromTarget(jvm) } }

dependencies {
    (described["modules.app.modules"] as List<*>).forEach { implementation(project(":$it")) }
    val maven = (described["modules.app.runtimes"] as List<*>).mapNotNull { described["runtimes.$it.maven"] }
    maven.forEach { implementation(it) }
}
