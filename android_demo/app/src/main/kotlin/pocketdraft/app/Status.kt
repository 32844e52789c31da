package pocketdraft.app

import com.google.gson.JsonObject
import java.io.File

/** What a tester's run has come to, for `pocketdraft phone-bench` to read: RUN.status.json beside the results. */
object Status {
    fun write(phone: Phone, run: String, state: String, share: Double, message: String = "") {
        val status = JsonObject().apply {
            addProperty("state", state)
            addProperty("share", share)
            addProperty("message", message)
        }
        val partial = File(phone.results, "$run.status.partial")
        partial.writeText(status.toString())
        partial.renameTo(File(phone.results, "$run.status.json"))
    }
}
