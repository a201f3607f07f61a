import io.lettuce.core.RedisClient;
import io.lettuce.core.RedisURI;
import io.lettuce.core.cluster.ClusterClientOptions;
import io.lettuce.core.cluster.ClusterTopologyRefreshOptions;
import io.lettuce.core.cluster.RedisClusterClient;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import org.redisson.Redisson;
import org.redisson.api.RedissonClient;
import org.redisson.client.codec.StringCodec;
import org.redisson.config.Config;

/**
 * Writers and readers with a client's own defaults: lettuce (in a cluster with all adaptive refresh triggers, as its documentation
 * asks for), jedis or redisson. Says in JSON what an application would have felt.
 *
 * <p>{@code java Writers CLIENT cluster|single ADDRESS:PORT}
 *
 * <p>Four writers set keys "CLIENT:<writer>:<n>" to "<n>" and read each back, until standard input ends.
 */
public class Writers {
    static final int WRITERS = 4;
    static final long PAUSE_MS = 10;

    interface Store {
        void set(String key, String value);

        String get(String key);
    }

    record Pair(java.util.function.BiConsumer<String, String> setter, java.util.function.UnaryOperator<String> getter) implements Store {
        public void set(String key, String value) {
            setter.accept(key, value);
        }

        public String get(String key) {
            return getter.apply(key);
        }
    }

    static Store connect(String client, String mode, String host, int port) {
        RedisURI uri = RedisURI.create(host, port);
        switch (client + " " + mode) {
            case "lettuce cluster" -> {
                var made = RedisClusterClient.create(uri);
                var refresh = ClusterTopologyRefreshOptions.builder().enableAllAdaptiveRefreshTriggers().build();
                made.setOptions(ClusterClientOptions.builder().topologyRefreshOptions(refresh).build());
                var commands = made.connect().sync();
                return new Pair(commands::set, commands::get);
            }
            case "lettuce single" -> {
                var commands = RedisClient.create(uri).connect().sync();
                return new Pair(commands::set, commands::get);
            }
            case "jedis cluster" -> {
                var made = redis.clients.jedis.RedisClusterClient.create(new redis.clients.jedis.HostAndPort(host, port));
                return new Pair(made::set, made::get);
            }
            case "jedis single" -> {
                var made = redis.clients.jedis.RedisClient.create(host, port);
                return new Pair(made::set, made::get);
            }
            case "redisson cluster", "redisson single" -> {
                Config config = new Config().setCodec(StringCodec.INSTANCE);
                String address = "redis://" + host + ":" + port;
                if (mode.equals("cluster")) {
                    config.useClusterServers().addNodeAddress(address);
                } else {
                    config.useSingleServer().setAddress(address);
                }
                RedissonClient made = Redisson.create(config);
                return new Pair((k, v) -> made.<String>getBucket(k).set(v), k -> made.<String>getBucket(k).get());
            }
            default -> throw new IllegalArgumentException(client + " " + mode);
        }
    }

    static class Felt {
        final int writer;
        final List<Integer> unacknowledged = new ArrayList<>();
        final Map<String, Integer> errors = new TreeMap<>();
        int asked;
        double stall;
        double stallAt;

        Felt(int writer) {
            this.writer = writer;
        }

        void failed(String what, Throwable error) {
            String text = String.valueOf(error).replaceAll(":\\d{5}\\b|\\b\\d+\\.\\d+\\.\\d+\\.\\d+|0x[0-9a-f]+|\\bw\\d+:\\d+", "…");
            errors.merge(what + ": " + text.substring(0, Math.min(200, text.length())), 1, Integer::sum);
        }

        String json() {
            String texts = errors.entrySet().stream()
                    .map(e -> "\"" + e.getKey().replaceAll("[\\\\\"\\p{Cntrl}]", " ") + "\":" + e.getValue())
                    .collect(Collectors.joining(","));
            return "{\"writer\":" + writer + ",\"asked\":" + asked + ",\"unacknowledged\":" + unacknowledged
                    + ",\"errors\":{" + texts + "},\"stall_seconds\":" + stall + ",\"stall_at\":" + stallAt + "}";
        }
    }

    static void write(String client, Felt felt, Store store, AtomicBoolean over) {
        long last = System.currentTimeMillis();
        boolean going = true;
        while (going) {
            going = !over.get();
            boolean acknowledged = false;
            int n = felt.asked;
            String key = client + ":" + felt.writer + ":" + n;
            if (going) {
                felt.asked++;
                try {
                    store.set(key, String.valueOf(n));
                    acknowledged = true;
                } catch (RuntimeException error) {
                    felt.unacknowledged.add(n);
                    felt.failed("set", error);
                }
            }
            if (acknowledged || !going) {
                double gap = (System.currentTimeMillis() - last) / 1000.0;
                if (gap > felt.stall) {
                    felt.stall = gap;
                    felt.stallAt = last / 1000.0;
                }
                last = System.currentTimeMillis();
            }
            if (acknowledged) {
                try {
                    if (!String.valueOf(n).equals(store.get(key))) {
                        felt.errors.merge("get: another value", 1, Integer::sum);
                    }
                } catch (RuntimeException error) {
                    felt.failed("get", error);
                }
            }
            try {
                Thread.sleep(PAUSE_MS);
            } catch (InterruptedException error) {
                return;
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        String[] where = arguments[2].split(":");
        Store store = connect(arguments[0], arguments[1], where[0], Integer.parseInt(where[1]));
        store.set(arguments[0] + ":first", "1");
        System.out.println("writing");
        AtomicBoolean over = new AtomicBoolean();
        List<Felt> all = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (int writer = 0; writer < WRITERS; writer++) {
            Felt felt = new Felt(writer);
            all.add(felt);
            threads.add(new Thread(() -> write(arguments[0], felt, store, over)));
        }
        threads.forEach(Thread::start);
        while (System.in.read() >= 0) {}
        over.set(true);
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println(all.stream().map(Felt::json).collect(Collectors.joining(",", "[", "]")));
        Runtime.getRuntime().halt(0);
    }
}
