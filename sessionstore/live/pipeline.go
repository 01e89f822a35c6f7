package live

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// execute runs a pipeline. Afterwards every command has its own error.
//
// go-redis gives the commands none where Redis itself has refused the connection, for instance because it is loading its
// data: they then look as if each had succeeded and found nothing.
func execute(ctx context.Context, pipe redis.Pipeliner) []redis.Cmder {
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		return cmds
	}
	for _, cmd := range cmds {
		if cmd.Err() != nil {
			return cmds
		}
	}
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
	return cmds
}
