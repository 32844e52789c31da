package pocketdraft.core

import org.junit.Assert.assertEquals
import org.junit.Test

/** The decisions of the Python runtime, one for one. */
class ReplayTest {
    @Test
    fun `each recorded session makes the same calls and gives the same rounds`() {
        for (recorded in Golden.read("sessions")) {
            val engine = ReplayedEngine(recorded.manifest(), recorded.getAsJsonArray("calls"), recorded["takes_trees"].asBoolean)
            val table = recorded["schedule"].takeUnless { it.isJsonNull }?.asJsonObject
            val schedule = table?.let { Scheduled(it["shares"].doubles().toList(), it["least"].doubles().toList()) }
            val drafts = recorded["drafts"].asInt
            val turns = recorded.getAsJsonArray("turns").map { it.asJsonObject }
            val target = Target(engine)
            val cache = target.newCache()
            target.prefill(cache, turns.first()["prompt"].ints().take(recorded["late"].asInt))
            val drafter = recorded["drafter"].asString
            val session = Session.open(
                target, drafter, drafts, recorded.sampler(), schedule = schedule, cache = cache, clock = engine::time,
            )
            val rounds = turns.flatMap { turn ->
                val whole = turn["prompt"].ints()
                val prompt = if (turn["rewind"].asBoolean) session.rewind(whole) else whole
                session.generate(prompt, turn["budget"].asInt).toList()
            }
            engine.close()
            val meant = recorded.getAsJsonArray("rounds").map { it.asJsonObject }.map { round ->
                val finish = round["finish"].takeUnless { it.isJsonNull }?.let { Finish.valueOf(it.asString.uppercase()) }
                Emitted(round["tokens"].ints(), round["drafted"].asInt, finish)
            }
            assertEquals(recorded["name"].asString, meant, rounds)
            session.stats.check()
            assertEquals(recorded["name"].asString, recorded["stats"], session.stats.toJson().also { it.remove("seconds") })
        }
    }

    @Test
    fun `each recorded verdict is reached again`() {
        Golden.read("verdicts").forEachIndexed { index, recorded ->
            val logits = recorded.getAsJsonArray("logits").map { row -> row.doubles().map { it.toFloat() }.toFloatArray() }
            val proposal = recorded.getAsJsonObject("proposal").let { it ->
                val probs = it.getAsJsonArray("probs").map { q -> if (q.isJsonNull) null else q.doubles() }
                Proposal(it["tokens"].ints(), it["parents"].ints(), probs)
            }
            val verdict = accept({ logits[it] }, proposal, recorded["tokens"].ints(), recorded.sampler())
            val meant = Verdict(recorded["accepted"].ints(), recorded["next_token"].asInt, recorded["rows"].ints())
            assertEquals("verdict $index", meant, verdict)
        }
    }

    @Test
    fun `each recorded tree is grown again, node for node`() {
        Golden.read("trees").forEachIndexed { index, recorded ->
            val budget = recorded["budget"].asInt
            val tree = bestTree(recorded.getAsJsonArray("marginals").map { likeliest(it.doubles(), budget) }, budget)
            assertEquals("tree $index", recorded["tokens"].ints() to recorded["parents"].ints(), tree.tokens to tree.parents)
        }
    }
}
