package pocketdraft.app

import android.app.Application

/** Holds what outlives an Activity: the opened bundle, the conversation and the work on them. */
class DemoApp : Application() {
    lateinit var demo: Demo
        private set

    override fun onCreate() {
        super.onCreate()
        demo = Demo(Phone(this))
    }

    @Deprecated("Android asks by both, depending on its version")
    override fun onLowMemory() {
        super.onLowMemory()
        demo.stop(getString(R.string.stopped_low_memory))
    }

    @Suppress("DEPRECATION")
    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        // Being in the background is no reason; being next to be ended is.
        if (level == TRIM_MEMORY_RUNNING_CRITICAL || level == TRIM_MEMORY_COMPLETE) {
            demo.stop(getString(R.string.stopped_low_memory))
        }
    }
}
