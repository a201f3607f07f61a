// Writers and readers with a client's own defaults: go-redis or rueidis. Says in JSON what an application would have felt.
//
//	writers CLIENT cluster|single ADDRESS:PORT
//
// Four writers set keys "CLIENT:<writer>:<n>" to "<n>" and read each back, until standard input ends.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

const (
	writers = 4
	pause   = 10 * time.Millisecond
)

type store interface {
	set(ctx context.Context, key, value string) error
	get(ctx context.Context, key string) (string, error)
}

type goRedis struct{ redis.UniversalClient }

func (c goRedis) set(ctx context.Context, key, value string) error {
	return c.Set(ctx, key, value, 0).Err()
}

func (c goRedis) get(ctx context.Context, key string) (string, error) {
	return c.Get(ctx, key).Result()
}

type rueidisClient struct{ rueidis.Client }

func (c rueidisClient) set(ctx context.Context, key, value string) error {
	return c.Do(ctx, c.B().Set().Key(key).Value(value).Build()).Error()
}

func (c rueidisClient) get(ctx context.Context, key string) (string, error) {
	return c.Do(ctx, c.B().Get().Key(key).Build()).ToString()
}

func connect(client, mode, address string) store {
	switch client + " " + mode {
	case "go-redis cluster":
		return goRedis{redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{address}})}
	case "go-redis single":
		return goRedis{redis.NewClient(&redis.Options{Addr: address})}
	case "rueidis cluster", "rueidis single":
		made, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, ForceSingleClient: mode == "single"})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return rueidisClient{made}
	}
	fmt.Fprintln(os.Stderr, "usage: writers go-redis|rueidis cluster|single ADDRESS:PORT")
	os.Exit(2)
	return nil
}

type felt struct {
	Writer         int            `json:"writer"`
	Asked          int            `json:"asked"`
	Unacknowledged []int          `json:"unacknowledged"`
	Errors         map[string]int `json:"errors"`
	StallSeconds   float64        `json:"stall_seconds"`
	StallAt        float64        `json:"stall_at"`
}

var varying = regexp.MustCompile(`:\d{5}\b|\b\d+\.\d+\.\d+\.\d+`)

func write(ctx context.Context, writer int, store store, over <-chan struct{}) felt {
	seen := felt{Writer: writer, Unacknowledged: []int{}, Errors: map[string]int{}}
	last := time.Now()
	progress := func() {
		if gap := time.Since(last).Seconds(); gap > seen.StallSeconds {
			seen.StallSeconds, seen.StallAt = gap, float64(last.UnixMicro())/1e6
		}
	}
	for {
		select {
		case <-over:
			progress()
			return seen
		default:
		}
		n := seen.Asked
		seen.Asked++
		key := fmt.Sprintf("%s:%d:%d", os.Args[1], writer, n)
		if err := store.set(ctx, key, strconv.Itoa(n)); err != nil {
			seen.Errors["set: "+varying.ReplaceAllString(err.Error(), "…")]++
			seen.Unacknowledged = append(seen.Unacknowledged, n)
		} else {
			progress()
			last = time.Now()
			if read, err := store.get(ctx, key); err != nil {
				seen.Errors["get: "+varying.ReplaceAllString(err.Error(), "…")]++
			} else if read != strconv.Itoa(n) {
				seen.Errors["get: another value"]++
			}
		}
		time.Sleep(pause)
	}
}

func main() {
	if len(os.Args) != 4 {
		connect("", "", "")
	}
	store := connect(os.Args[1], os.Args[2], os.Args[3])
	ctx := context.Background()
	if err := store.set(ctx, os.Args[1]+":first", "1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("writing")
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	all := make([]felt, writers)
	var group sync.WaitGroup
	for writer := range writers {
		group.Go(func() { all[writer] = write(ctx, writer, store, over) })
	}
	group.Wait()
	_ = json.NewEncoder(os.Stdout).Encode(all)
}
