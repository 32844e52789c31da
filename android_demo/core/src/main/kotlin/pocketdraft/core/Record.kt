package pocketdraft.core

import com.google.gson.Gson
import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonPrimitive

/**
 * A JSON object that is read key by key. What is missing, of another kind or left over is refused with its place.
 *
 * [refuse] makes the error of a fault: the reader knows which file it is and what mends it.
 */
class Record(element: JsonElement, private val place: String, private val refuse: (String, String) -> PocketdraftError) {
    private val members = element as? JsonObject ?: throw refuse(place.ifEmpty { "the top level" }, "no object")
    private val read = HashSet<String>()

    fun text(key: String): String = primitive(key) { it.isString }.asString

    fun textOrNull(key: String): String? = if (isNull(key)) null else text(key)

    fun whole(key: String): Long {
        val number = primitive(key) { it.isNumber }.asString.toBigDecimal()
        return runCatching { number.longValueExact() }.getOrElse { throw refuse(at(key), "no whole number") }
    }

    fun int(key: String): Int = whole(key).toInt()

    fun intOrNull(key: String): Int? = if (isNull(key)) null else int(key)

    fun flag(key: String, default: Boolean): Boolean = if (isNull(key)) default else primitive(key) { it.isBoolean }.asBoolean

    fun ints(key: String): List<Int> = array(key).map { it.asInt }

    fun record(key: String): Record = Record(member(key), at(key), refuse)

    fun reals(key: String): List<Double> = array(key).map { it.asDouble }

    fun recordOrNull(key: String): Record? = if (isNull(key)) null else record(key)

    fun records(key: String): List<Record> = array(key).mapIndexed { index, it -> Record(it, "${at(key)}.$index", refuse) }

    /** Objects by name. */
    fun table(key: String): Map<String, Record> = record(key).let { it.members.keySet().associateWith(it::record) }

    /** As it stands. */
    fun raw(key: String): JsonElement = member(key)

    fun array(key: String): JsonArray = member(key) as? JsonArray ?: throw refuse(at(key), "no list")

    fun isNull(key: String): Boolean {
        read += key
        return members[key]?.isJsonNull ?: true
    }

    fun <T : Enum<T>> choice(key: String, among: Iterable<T>): T {
        val name = text(key)
        return among.find { it.name.equals(name, ignoreCase = true) } ?: throw refuse(at(key), "'$name' is not known")
    }

    /** Refuses what was not read. */
    fun end() {
        members.keySet().find { it !in read }?.let { throw refuse(at(it), "not known") }
    }

    private fun member(key: String): JsonElement = if (isNull(key)) throw refuse(at(key), "missing") else members[key]

    private fun primitive(key: String, fits: (JsonPrimitive) -> Boolean): JsonPrimitive =
        (member(key) as? JsonPrimitive)?.takeIf(fits) ?: throw refuse(at(key), "of another type")

    private fun at(key: String) = if (place.isEmpty()) key else "$place.$key"

    companion object {
        /** Strict JSON. */
        fun parse(text: String, refuse: (String, String) -> PocketdraftError): Record {
            val element = runCatching { Gson().getAdapter(JsonElement::class.java).fromJson(text) }
            return Record(element.getOrNull() ?: throw refuse("the top level", "no JSON"), "", refuse)
        }
    }
}
